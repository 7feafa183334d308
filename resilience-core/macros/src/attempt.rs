//! What every attempt gets anew: its arguments, and `self`.

use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    Block, Expr, FnArg, Item, Macro, Pat, Receiver, ReceiverKind, Result, Stmt, Type,
    parse_quote_spanned,
};

use crate::function::Function;
use crate::paths;

/// What every attempt gets anew.
#[derive(Default)]
pub(crate) struct PerAttempt {
    /// Patterns of the arguments, in order.
    pub(crate) patterns: Vec<TokenStream>,
    /// A value for each.
    pub(crate) values: Vec<TokenStream>,
    /// First statements of an attempt.
    pub(crate) prologue: TokenStream,
}

impl Function {
    /// Turns the arguments into ones that every attempt can take its own copy of.
    pub(crate) fn share_arguments(&mut self, support: &TokenStream) -> Result<PerAttempt> {
        let mut per_attempt = PerAttempt::default();
        for (index, input) in self.sig.inputs.iter_mut().enumerate() {
            match input {
                FnArg::Receiver(receiver) => {
                    share_receiver(receiver, &mut self.body, support, &mut per_attempt)?;
                }
                FnArg::Typed(argument) => {
                    let (name, pattern) = match &mut *argument.pat {
                        Pat::Wild(_) => continue,
                        Pat::Ident(plain) if plain.by_ref.is_none() && plain.subpat.is_none() => {
                            let pattern = quote!(#plain);
                            plain.mutability = None;
                            (plain.ident.clone(), pattern)
                        }
                        other => {
                            let name = Ident::new(&format!("argument_{index}"), Span::mixed_site());
                            let pattern = quote!(#other);
                            *other = parse_quote_spanned!(Span::mixed_site()=> #name);
                            (name, pattern)
                        }
                    };
                    per_attempt.patterns.push(pattern);
                    per_attempt.values.push(own(&argument.ty, &name, support));
                }
            }
        }
        Ok(per_attempt)
    }
}

/// One attempt's own: a shared reference copied, an exclusive one lent, a value cloned.
fn own(ty: &Type, name: &Ident, support: &TokenStream) -> TokenStream {
    match ty {
        Type::Reference(reference) if reference.mutability.is_some() => quote!(&mut *#name),
        Type::Reference(_) => quote!(#name),
        _ => paths::call(ty.span(), support, "own", quote!(&#name)),
    }
}

fn share_receiver(
    receiver: &mut Receiver,
    body: &mut TokenStream,
    support: &TokenStream,
    per_attempt: &mut PerAttempt,
) -> Result<()> {
    let self_token = receiver.self_token;
    let exclusive = match &receiver.kind {
        ReceiverKind::Reference(_, _, mutability) => mutability.is_some(),
        ReceiverKind::Typed(_, ty) => match &**ty {
            Type::Reference(reference) => reference.mutability.is_some(),
            _ => return share_owned_receiver(receiver, body, support, per_attempt),
        },
        _ => return share_owned_receiver(receiver, body, support, per_attempt),
    };
    if exclusive {
        // Borrowed as a whole and exclusively, or an attempt that only reads would need `Self: Sync`.
        per_attempt.prologue.extend(quote!(let _ = &mut *#self_token;));
    }
    Ok(())
}

/// `self` cannot be bound anew, so the body speaks of its clone by another name.
fn share_owned_receiver(
    receiver: &mut Receiver,
    body: &mut TokenStream,
    support: &TokenStream,
    per_attempt: &mut PerAttempt,
) -> Result<()> {
    let self_token = receiver.self_token;
    let mutability = receiver.mutability.take();
    let name = Ident::new(OWN_SELF, self_token.span);
    let clone = paths::call(self_token.span, support, "own", quote!(&#self_token));
    per_attempt.patterns.push(quote!(#mutability #name));
    per_attempt.values.push(clone);
    let mut block: Block = syn::parse2(quote!({ #body }))?;
    RenameSelf.visit_block_mut(&mut block);
    *body = block.stmts.iter().map(Stmt::to_token_stream).collect();
    Ok(())
}

const OWN_SELF: &str = "__resilience_self";

struct RenameSelf;

impl VisitMut for RenameSelf {
    fn visit_expr_mut(&mut self, expr: &mut Expr) {
        match expr {
            Expr::Path(path) if path.path.is_ident("self") => {
                let ident = &mut path.path.segments[0].ident;
                *ident = Ident::new(OWN_SELF, ident.span());
            }
            _ => visit_mut::visit_expr_mut(self, expr),
        }
    }

    fn visit_macro_mut(&mut self, call: &mut Macro) {
        call.tokens = rename_self(std::mem::take(&mut call.tokens));
    }

    /// Items within the body have a `self` of their own.
    fn visit_item_mut(&mut self, _: &mut Item) {}
}

fn rename_self(tokens: TokenStream) -> TokenStream {
    let mut tokens = tokens.into_iter().peekable();
    let mut renamed = TokenStream::new();
    while let Some(token) = tokens.next() {
        let starts_a_path =
            matches!(tokens.peek(), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
        renamed.extend([match token {
            TokenTree::Ident(ident) if ident == "self" && !starts_a_path => {
                Ident::new(OWN_SELF, ident.span()).into()
            }
            TokenTree::Group(group) => {
                let inner = rename_self(group.stream());
                let mut new = Group::new(group.delimiter(), inner);
                new.set_span(group.span());
                new.into()
            }
            other => other,
        }]);
    }
    renamed
}
