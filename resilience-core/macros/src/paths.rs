//! Where the expansion finds what it calls: in the core, or in the facade that re-exports it.

use proc_macro_crate::{FoundCrate, crate_name};
use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};

/// The path of `macro_support` as the expanding crate can name it, renamed dependencies included.
pub(crate) fn macro_support() -> TokenStream {
    for package in ["resilience-core", "shared-external"] {
        match crate_name(package) {
            Ok(FoundCrate::Name(name)) => return path(&name),
            Ok(FoundCrate::Itself) => return path(&package.replace('-', "_")),
            Err(_) => {}
        }
    }
    // Neither is a direct dependency: the compiler says so best itself, about this path.
    path("resilience_core")
}

fn path(name: &str) -> TokenStream {
    let name = Ident::new(name, Span::call_site());
    quote!(::#name::macro_support)
}

/// A call of `macro_support`'s function `name`. An error about its bounds points at `span`.
pub(crate) fn call(
    span: Span,
    support: &TokenStream,
    name: &str,
    arguments: TokenStream,
) -> TokenStream {
    let name = Ident::new(name, span);
    let span = span.resolved_at(Span::mixed_site());
    let respanned = |tokens: TokenStream| -> TokenStream {
        tokens
            .into_iter()
            .map(|mut token| {
                token.set_span(token.span().located_at(span));
                token
            })
            .collect()
    };
    let (support, arguments) = (respanned(support.clone()), respanned(arguments));
    quote_spanned!(span=> #support::#name(#arguments))
}
