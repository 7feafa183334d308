//! The functions that both attributes can stand on.

use std::cell::Cell;
use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use resilience_core::{CircuitOpen, circuit_breaker, with_retry};

#[derive(Debug, PartialEq)]
struct MyError;

impl From<CircuitOpen> for MyError {
    fn from(_: CircuitOpen) -> Self {
        Self
    }
}

/// Fails on every other call.
#[derive(Debug, Default)]
struct Client {
    calls: AtomicU32,
    log: String,
}

impl Client {
    fn flaky(&self) -> Result<u32, MyError> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if call.is_multiple_of(2) { Err(MyError) } else { Ok(call) }
    }

    #[circuit_breaker("shapes")]
    #[with_retry(base_delay = 0)]
    async fn by_reference(&self) -> Result<u32, MyError> {
        self.flaky()
    }

    #[circuit_breaker("shapes")]
    #[with_retry(base_delay = 0)]
    async fn exclusively(&mut self, word: &str) -> Result<&'static str, MyError> {
        self.log.push_str(word);
        tokio::task::yield_now().await;
        self.note(word);
        self.flaky()?;
        Ok("done")
    }

    fn note(&mut self, word: &str) {
        self.log.push_str(word);
    }

    #[with_retry(base_delay = 0)]
    #[circuit_breaker("shapes-reversed")]
    async fn reversed(&mut self, word: String) -> Result<u32, MyError> {
        self.log += &word;
        drop(word);
        self.flaky()
    }

    #[circuit_breaker("shapes")]
    async fn lent_out(&mut self) -> Result<&mut String, MyError> {
        tokio::task::yield_now().await;
        Ok(&mut self.log)
    }

    #[circuit_breaker("shapes")]
    fn lent_out_sync(&mut self, more: &str) -> Result<&mut String, MyError> {
        self.log += more;
        Ok(&mut self.log)
    }

    #[with_retry(base_delay = 0)]
    #[circuit_breaker("shapes-reversed")]
    fn part_of<'a>(&'a self, prefix: &str) -> Result<&'a str, MyError> {
        self.flaky()?;
        self.log.strip_prefix(prefix).ok_or(MyError)
    }

    #[with_retry(base_delay = 0)]
    async fn shared(self: Arc<Self>) -> Result<(u32, String), MyError> {
        let call = self.flaky()?;
        let shown = format!("{self:?} {}", self.log);
        let mine = tokio::spawn(async move { self });
        assert!(mine.await.is_ok());
        Ok((call, shown))
    }

    #[allow(clippy::needless_arbitrary_self_type)]
    #[with_retry(base_delay = 0)]
    fn typed(self: &mut Self) -> Result<u32, MyError> {
        self.note("typed");
        self.flaky()
    }

    #[circuit_breaker("shapes")]
    #[with_retry(base_delay = 0)]
    fn owned_sync(&self, word: String, words: Vec<String>) -> Result<String, MyError> {
        self.flaky()?;
        Ok(word + &words.concat())
    }

    #[circuit_breaker("shapes")]
    async fn consumed(mut self) -> Result<String, MyError> {
        self.log.push('!');
        Ok(self.log)
    }

    #[circuit_breaker("shapes")]
    #[with_retry(base_delay = 0)]
    async fn associated() -> Result<Self, MyError> {
        Ok(Self::default())
    }
}

#[tokio::test(start_paused = true)]
async fn methods_keep_their_self() {
    let mut client = Client::default();
    assert_eq!(client.by_reference().await, Ok(1));
    assert_eq!(client.exclusively("a").await, Ok("done"));
    assert_eq!(client.log, "aaaa");
    assert_eq!(client.reversed("b".into()).await, Ok(5));
    assert_eq!(client.log, "aaaabb");
    client.lent_out().await.unwrap().clear();
    client.lent_out_sync("x").unwrap().push('y');
    assert_eq!(client.part_of("x"), Ok("y"));
    assert_eq!(client.typed(), Ok(9));
    assert_eq!(client.log, "xytypedtyped");
    assert_eq!(client.owned_sync("a".into(), vec!["b".into()]).as_deref(), Ok("ab"));
    let client = Arc::new(client);
    let (call, shown) = Arc::clone(&client).shared().await.unwrap();
    assert_eq!(call, 13);
    assert!(shown.starts_with("Client") && shown.ends_with("typed"), "{shown}");
    let client = Arc::into_inner(client).expect("no attempt keeps its clone");
    assert_eq!(client.consumed().await.as_deref(), Ok("xytypedtyped!"));
    assert!(Client::associated().await.is_ok());
}

trait Fetch {
    async fn fetch(&self, key: &str) -> Result<String, MyError>;

    #[with_retry(base_delay = 0)]
    async fn fetch_twice(&self, key: String) -> Result<String, MyError> {
        Ok(self.fetch(&key).await? + &self.fetch(&key).await?)
    }
}

impl Fetch for Client {
    #[circuit_breaker("shapes", excluded(MyError))]
    #[with_retry(base_delay = 0)]
    async fn fetch(&self, key: &str) -> Result<String, MyError> {
        self.flaky().map(|_| key.to_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn trait_methods_work_with_and_without_a_default() {
    assert_eq!(Client::default().fetch_twice("k".into()).await.as_deref(), Ok("kk"));
}

/// Doc comments, lints and `must_use` stay on the function.
#[circuit_breaker("shapes")]
#[with_retry(base_delay = 0)]
#[must_use = "or why ask"]
async fn generic<'a, T, const N: usize>(
    items: [&'a T; N],
    shown: impl Display + Clone + Send,
    check: impl Fn(&T) -> bool + Clone,
) -> Result<Vec<&'a T>, MyError>
where
    T: Debug + ?Sized,
{
    #![allow(clippy::needless_return)]
    let _ = shown.to_string();
    return Ok(items.into_iter().filter(|item| check(item)).collect());
}

#[tokio::test(start_paused = true)]
async fn generics_lifetimes_and_impl_trait_work() {
    let result = generic(["a", "bc"], 7, |item: &str| item.len() > 1).await;
    assert_eq!(result, Ok(vec!["bc"]));
}

#[circuit_breaker("shapes")]
#[with_retry(base_delay = 0)]
fn hidden_type(end: u32) -> Result<impl Iterator<Item = u32> + Debug, MyError> {
    Ok(0..end)
}

#[circuit_breaker("shapes")]
#[with_retry(base_delay = 0)]
async fn hidden_type_in_time(word: &str) -> Result<impl Iterator<Item = char> + use<'_>, MyError> {
    Ok(word.chars())
}

type Reply<T> = Result<T, MyError>;

#[with_retry(base_delay = 0)]
#[circuit_breaker("shapes-reversed")]
fn aliased(number: u8) -> Reply<u8> {
    Ok(number)
}

#[tokio::test(start_paused = true)]
async fn hidden_and_aliased_results_work() {
    assert_eq!(hidden_type_in_time("abc").await.unwrap().last(), Some('c'));
    assert_eq!(hidden_type(3).unwrap().sum::<u32>(), 3);
    assert_eq!(aliased(3), Ok(3));
}

#[circuit_breaker("shapes")]
#[with_retry(base_delay = 0)]
async fn with_a_cell(cell: Cell<u32>, client: &mut Client) -> Result<u32, MyError> {
    cell.set(cell.get() + 1);
    tokio::task::yield_now().await;
    client.note("cell");
    Ok(cell.get())
}

struct Counter(Cell<u32>);

impl Counter {
    #[with_retry(base_delay = 0)]
    async fn next(&mut self) -> Result<u32, std::rc::Rc<str>> {
        self.0.set(self.0.get() + 1);
        tokio::task::yield_now().await;
        if self.0.get() < 3 { Err("not yet".into()) } else { Ok(self.0.get()) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_future_is_send_where_the_body_is() {
    fn send<T: Send>(future: T) -> T {
        future
    }

    let mut client = Client::default();
    assert_eq!(send(with_a_cell(Cell::new(1), &mut client)).await, Ok(2));
    // Neither a `Self` that is not `Sync` nor an error that is not `Send` makes it less.
    assert_eq!(send(Counter(Cell::new(0)).next()).await, Ok(3));
    let client = Client::default();
    assert_eq!(send(client.by_reference()).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_future_is_not_much_larger_than_the_body_s() {
    async fn bare(buffer: [u8; 1024]) -> Result<u8, MyError> {
        tokio::task::yield_now().await;
        buffer.first().copied().ok_or(MyError)
    }

    #[circuit_breaker("shapes")]
    async fn guarded(buffer: [u8; 1024]) -> Result<u8, MyError> {
        tokio::task::yield_now().await;
        buffer.first().copied().ok_or(MyError)
    }

    let (bare, guarded) = (size_of_val(&bare([0; 1024])), size_of_val(&guarded([0; 1024])));
    // Arguments of an async function and what its block captures are kept apart by the compiler.
    assert!(guarded < 2 * bare + 512, "{guarded} bytes against {bare}");
}

macro_rules! client_function {
    ($name:ident, $retries:expr, $body:block) => {
        #[circuit_breaker(stringify!($name))]
        #[with_retry(max_retries = $retries, base_delay = 0)]
        async fn $name(calls: &AtomicU32) -> Result<u32, MyError> {
            calls.fetch_add(1, Ordering::Relaxed);
            $body.map_err(|()| MyError)
        }
    };
}

client_function!(written_by_a_macro, 2, { Err(()) });

#[tokio::test(start_paused = true)]
async fn a_function_written_by_another_macro_works() {
    let calls = AtomicU32::new(0);
    assert_eq!(written_by_a_macro(&calls).await, Err(MyError));
    assert_eq!(calls.into_inner(), 3);
}
