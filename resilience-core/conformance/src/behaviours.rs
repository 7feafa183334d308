//! Everything that a connector promises, a room at a time; each name is a fear put to rest.

mod cancellation;
mod circuit;
mod connecting;
mod deadlines;
mod drain;
mod endpoints;
mod events;
mod extras;
mod health;
mod limits;
mod pool;
mod retries;
mod runtimes;
mod secrets;

use crate::suite::Behaviour;

pub(crate) fn all() -> Vec<Behaviour> {
    [
        connecting::all(),
        secrets::all(),
        deadlines::all(),
        retries::all(),
        circuit::all(),
        limits::all(),
        cancellation::all(),
        pool::all(),
        endpoints::all(),
        drain::all(),
        health::all(),
        events::all(),
        runtimes::all(),
        extras::all(),
    ]
    .concat()
}
