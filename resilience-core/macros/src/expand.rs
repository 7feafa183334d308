//! Puts the layers around a function's body.
//!
//! Both attributes of a function expand together, whichever stands first, because an attribute
//! that is left for later would wrap what is already there. What comes out is one function: no box,
//! no closure around a future, so that it is `Send` wherever the body is.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, PathArguments, Result, Type};

use crate::arguments::{BreakerArguments, RetryArguments};
use crate::attempt::PerAttempt;
use crate::function::Function;
use crate::paths;

/// How the names of our items in a body begin, so that one attribute recognises another's work.
pub(crate) const MARK: &str = "__RESILIENCE_";

const CIRCUIT_BREAKER: &str = "circuit_breaker";
const WITH_RETRY: &str = "with_retry";

/// Which attribute stands first: it is the outermost.
#[derive(Clone, Copy)]
pub(crate) enum First {
    CircuitBreaker,
    WithRetry,
}

impl First {
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::CircuitBreaker => (CIRCUIT_BREAKER, WITH_RETRY),
            Self::WithRetry => (WITH_RETRY, CIRCUIT_BREAKER),
        }
    }
}

/// The function with its layers; where that cannot be, the errors and the function without them.
pub(crate) fn expand(first: First, arguments: TokenStream, item: TokenStream) -> TokenStream {
    let function = match syn::parse2::<Function>(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let error = error.into_compile_error();
            return quote!(#error #item);
        }
    };
    let mut plain = function.clone();
    match layered(first, arguments, function) {
        Ok(tokens) => tokens,
        Err(error) => {
            let error = error.into_compile_error();
            // The other attribute's own complaints are among the errors already.
            let _ = plain.take_attribute(first.names().1);
            quote!(#error #plain)
        }
    }
}

fn layered(first: First, arguments: TokenStream, mut function: Function) -> Result<TokenStream> {
    let (own, other) = first.names();
    let support = paths::macro_support();
    function.check(own)?;
    if function.take_attribute(own)?.is_some() {
        let cure =
            format!("one `{own}` is enough: put the other on a function that this one calls");
        return Err(Error::new(Span::call_site(), cure));
    }
    let other = function.take_attribute(other)?;
    let (breaker, retry) = match first {
        First::CircuitBreaker => (Some(arguments), other),
        First::WithRetry => (other, Some(arguments)),
    };
    let breaker = breaker.map(|tokens| BreakerArguments::parse(tokens, &support)).transpose()?;
    let retry = retry.map(|tokens| RetryArguments::parse(tokens, &support)).transpose()?;
    let result = function.result_type(own)?;
    let per_attempt = match &retry {
        Some(_) => function.share_arguments(&support)?,
        None => PerAttempt::default(),
    };
    let expansion = Expansion { support: &support, result: &result, function: &function };
    function.body = match (first, &breaker, &retry) {
        (First::WithRetry, Some(breaker), Some(retry)) => {
            expansion.retry_around_breaker(retry, breaker, &per_attempt)
        }
        (First::CircuitBreaker, Some(breaker), Some(retry)) => {
            let inner = expansion.retry(retry, Some(breaker), &per_attempt);
            expansion.breaker(breaker, &inner)
        }
        (_, Some(breaker), None) => expansion.breaker(breaker, &function.body),
        (_, None, Some(retry)) => expansion.retry(retry, None, &per_attempt),
        (_, None, None) => unreachable!("the first attribute is one of them"),
    };
    Ok(quote!(#function))
}

struct Expansion<'a> {
    support: &'a TokenStream,
    /// The type of the function's result.
    result: &'a Type,
    function: &'a Function,
}

impl Expansion<'_> {
    /// The breaker around `inner`.
    fn breaker(&self, breaker: &BreakerArguments, inner: &TokenStream) -> TokenStream {
        let (place, item) = self.breaker_item(breaker);
        let guarded = self.guarded(breaker, &self.block(&quote!(move), inner));
        let open = quote_spanned!(Span::mixed_site()=> open);
        let refused = paths::call(error_span(self.result), self.support, "refused", open);
        quote_spanned! {Span::mixed_site()=>
            #item
            match #place.enter() {
                ::core::result::Result::Ok(permit) => #guarded,
                ::core::result::Result::Err(open) => #refused,
            }
        }
    }

    /// Attempts at the body, one after another.
    fn retry(
        &self,
        retry: &RetryArguments,
        breaker: Option<&BreakerArguments>,
        per_attempt: &PerAttempt,
    ) -> TokenStream {
        let support = self.support;
        let (place, item) = self.retry_item(retry, breaker);
        let (arguments, body) = self.attempt(per_attempt);
        let block = self.block(&TokenStream::new(), &body);
        let attempt = match self.function.is_async() {
            true => quote!(#block.await),
            false => quote!((#block)()),
        };
        let retryable = retryable(retry);
        let wait = self.wait();
        quote_spanned! {Span::mixed_site()=>
            #item
            let mut retries = #place.begin();
            loop {
                #arguments
                #[allow(clippy::redundant_closure_call)]
                let attempt = #attempt;
                let delay = match retries.after(attempt, #retryable) {
                    ::core::ops::ControlFlow::Break(result) => break result,
                    ::core::ops::ControlFlow::Continue(delay) => delay,
                };
                #support::#wait;
            }
        }
    }

    /// Attempts at the body, each under the breaker. Only here can the retry see a refusal.
    fn retry_around_breaker(
        &self,
        retry: &RetryArguments,
        breaker: &BreakerArguments,
        per_attempt: &PerAttempt,
    ) -> TokenStream {
        let support = self.support;
        let (breaker_place, breaker_item) = self.breaker_item(breaker);
        let (retry_place, retry_item) = self.retry_item(retry, Some(breaker));
        let (arguments, body) = self.attempt(per_attempt);
        let guarded = self.guarded(breaker, &self.block(&TokenStream::new(), &body));
        let retryable = retryable(retry);
        let wait = self.wait();
        quote_spanned! {Span::mixed_site()=>
            #breaker_item
            #retry_item
            let mut retries = #retry_place.begin();
            let mut last = ::core::option::Option::None;
            loop {
                let attempt = match #breaker_place.enter() {
                    ::core::result::Result::Ok(permit) => {
                        #arguments
                        ::core::result::Result::Ok(#guarded)
                    }
                    ::core::result::Result::Err(open) => ::core::result::Result::Err(open),
                };
                let delay = match retries.after_guarded(attempt, &#breaker_place, &mut last, #retryable) {
                    ::core::ops::ControlFlow::Break(result) => break result,
                    ::core::ops::ControlFlow::Continue(delay) => delay,
                };
                #support::#wait;
            }
        }
    }

    /// `block` under `permit`, which is then settled.
    fn guarded(&self, breaker: &BreakerArguments, block: &TokenStream) -> TokenStream {
        let support = self.support;
        let excluded = match &breaker.excluded {
            Some(patterns) => patterns.matcher(),
            None => quote!(|_| false),
        };
        let watched = match self.function.is_async() {
            true => quote_spanned!(Span::mixed_site()=> watch(permit, #block).await),
            false => quote_spanned!(Span::mixed_site()=> watch_blocking(permit, #block)),
        };
        let settled = quote_spanned!(Span::mixed_site()=> permit, result, #excluded);
        let settle = paths::call(self.result.span(), support, "settle", settled);
        quote_spanned! {Span::mixed_site()=> {
            let (permit, result) = #support::#watched;
            #settle
        }}
    }

    /// What runs `body` and gives its result: `return` and `?` in it end it alone.
    fn block(&self, capture: &TokenStream, body: &TokenStream) -> TokenStream {
        let result = self.result;
        if self.function.is_async() {
            // The `return` that never happens tells the compiler the type of the others.
            quote_spanned! {Span::mixed_site()=>
                async #capture {
                    if let ::core::option::Option::Some(never) = ::core::option::Option::None::<#result> {
                        return never;
                    }
                    #body
                }
            }
        } else {
            quote!(#capture || -> #result { #body })
        }
    }

    /// The arguments of one attempt, and the body that takes them.
    ///
    /// The block around that body borrows what it uses but takes the arguments, for it moves them
    /// out of their tuple; a block that took all would take an exclusive `self` for good.
    fn attempt(&self, per_attempt: &PerAttempt) -> (TokenStream, TokenStream) {
        let PerAttempt { patterns, values, prologue } = per_attempt;
        let body = &self.function.body;
        if patterns.is_empty() {
            return (TokenStream::new(), quote!(#prologue #body));
        }
        let arguments = Ident::new("arguments", Span::mixed_site());
        (
            quote!(let #arguments = (#(#values,)*);),
            quote!(let (#(#patterns,)*) = #arguments; #prologue #body),
        )
    }

    fn breaker_item(&self, breaker: &BreakerArguments) -> (Ident, TokenStream) {
        let support = self.support;
        let place = Ident::new(&format!("{MARK}BREAKER"), Span::mixed_site());
        let BreakerArguments { name, settings, .. } = breaker;
        let item = quote! {
            static #place: #support::Breaker =
                #support::Breaker::new(|| #support::CircuitBreaker::builder(#name) #settings);
        };
        (place, item)
    }

    fn retry_item(
        &self,
        retry: &RetryArguments,
        breaker: Option<&BreakerArguments>,
    ) -> (Ident, TokenStream) {
        let support = self.support;
        let place = Ident::new(&format!("{MARK}RETRY"), Span::mixed_site());
        let name = match breaker {
            Some(BreakerArguments { name, .. }) => quote!(#name),
            None => {
                let name = self.function.sig.ident.to_string();
                quote!(#name)
            }
        };
        let settings = &retry.settings;
        let item = quote! {
            static #place: #support::Retry =
                #support::Retry::new(|| #support::RetryPolicy::builder().name(#name) #settings);
        };
        (place, item)
    }

    fn wait(&self) -> TokenStream {
        match self.function.is_async() {
            true => quote_spanned!(Span::mixed_site()=> sleep(delay).await),
            false => quote_spanned!(Span::mixed_site()=> block(delay)),
        }
    }
}

fn retryable(retry: &RetryArguments) -> TokenStream {
    match &retry.retryable {
        Some(patterns) => patterns.matcher(),
        None => quote!(|_| true),
    }
}

/// Where the error type is written, as far as that can be seen.
fn error_span(result: &Type) -> Span {
    let Type::Path(path) = result else { return result.span() };
    match path.path.segments.last().map(|last| &last.arguments) {
        Some(PathArguments::AngleBracketed(arguments)) if arguments.args.len() > 1 => {
            arguments.args.last().span()
        }
        _ => result.span(),
    }
}
