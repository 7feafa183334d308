//! The function under an attribute: its parts, and whether it can be wrapped at all.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    AttrStyle, Attribute, Error, Meta, Result, ReturnType, Signature, Token, Type, Visibility,
    braced, parse_quote_spanned,
};

use crate::expand::MARK;

/// A function whose body is left unread.
#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    /// What stands between the braces.
    pub(crate) body: TokenStream,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        let sig: Signature = input.parse().map_err(|error| {
            Error::new(error.span(), format!("this attribute goes on a function ({error})"))
        })?;
        if input.peek(Token![;]) {
            let cure = "a function without a body does nothing to guard or repeat: put the attribute on its implementation";
            return Err(Error::new_spanned(&sig, cure));
        }
        let body;
        braced!(body in input);
        for mut attr in body.call(Attribute::parse_inner)? {
            attr.style = AttrStyle::Outer;
            attrs.push(attr);
        }
        Ok(Self { attrs, vis, sig, body: body.parse()? })
    }
}

impl Function {
    pub(crate) fn is_async(&self) -> bool {
        self.sig.asyncness.is_some()
    }

    /// The arguments of the attribute `name` below the one that is expanding. It is taken off:
    /// left there, it would wrap what stands above it.
    pub(crate) fn take_attribute(&mut self, name: &str) -> Result<Option<TokenStream>> {
        let is_it = |attr: &Attribute| {
            attr.path().segments.last().is_some_and(|segment| segment.ident == name)
        };
        let Some(index) = self.attrs.iter().position(is_it) else { return Ok(None) };
        match self.attrs.remove(index).meta {
            Meta::Path(_) => Ok(Some(TokenStream::new())),
            Meta::List(list) => Ok(Some(list.tokens)),
            Meta::NameValue(pair) => Err(Error::new(pair.span(), format!("write `{name}(…)`"))),
        }
    }

    /// The type of its result, `impl Trait` in it left to the compiler to infer.
    ///
    /// # Errors
    ///
    /// If it has none, or one that shows it to be a future.
    pub(crate) fn result_type(&self, attribute: &str) -> Result<Type> {
        let ReturnType::Type(_, ty) = &self.sig.output else {
            let cure = format!(
                "`{attribute}` tells success from failure by a `Result`, and this function returns none"
            );
            return Err(Error::new(self.sig.ident.span(), cure));
        };
        if !self.is_async() && is_future(ty) {
            let cure = format!(
                "`{attribute}` wraps an `async fn`, not a function that returns a future: make it one, or call one that has the attribute"
            );
            return Err(Error::new_spanned(ty, cure));
        }
        let mut ty = Type::clone(ty);
        InferImplTrait.visit_type_mut(&mut ty);
        Ok(ty)
    }

    /// # Errors
    ///
    /// If it is `const`, or an attribute of ours has already wrapped it unseen.
    pub(crate) fn check(&self, attribute: &str) -> Result<()> {
        if let Some(constness) = self.sig.constness {
            let cure = format!("`{attribute}` cannot wrap a `const fn`: it reads the clock");
            return Err(Error::new(constness.span(), cure));
        }
        let wrapped = self.body.clone().into_iter().any(
            |token| matches!(token, TokenTree::Ident(ident) if ident.to_string().starts_with(MARK)),
        );
        if wrapped {
            let cure = "these attributes would not nest as written: on one function, write each once and by its own name, not renamed";
            return Err(Error::new(Span::call_site(), cure));
        }
        Ok(())
    }
}

impl ToTokens for Function {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let Self { attrs, vis, sig, body } = self;
        tokens.extend(quote!(#(#attrs)* #vis #sig { #body }));
    }
}

/// `impl Trait` can be written in a signature only.
struct InferImplTrait;

impl VisitMut for InferImplTrait {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        match ty {
            Type::ImplTrait(_) => *ty = parse_quote_spanned!(ty.span()=> _),
            _ => visit_mut::visit_type_mut(self, ty),
        }
    }
}

/// Whether a function that is not async shows by its result that it should be.
fn is_future(ty: &Type) -> bool {
    let wrapper = match ty {
        Type::ImplTrait(_) => true,
        Type::Path(path) => path.path.segments.last().is_some_and(|last| {
            ["Pin", "Box", "BoxFuture", "LocalBoxFuture"].iter().any(|name| last.ident == name)
        }),
        _ => false,
    };
    wrapper && names_future(ty.to_token_stream())
}

fn names_future(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident.to_string().ends_with("Future"),
        TokenTree::Group(group) => names_future(group.stream()),
        _ => false,
    })
}
