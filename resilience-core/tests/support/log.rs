//! What this thread logs while a test listens.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;

/// It listens until its [`end`](Self::end).
pub(crate) struct Log {
    lines: Lines,
    guard: DefaultGuard,
}

impl Log {
    /// Listens to what `filter` lets through.
    pub(crate) fn listen(filter: &str) -> Self {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        Self { lines, guard: tracing::subscriber::set_default(subscriber) }
    }

    /// What it heard.
    pub(crate) fn end(self) -> String {
        drop(self.guard);
        String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap()
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
