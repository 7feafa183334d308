//! Reads the arguments of both attributes. What is a literal is checked here; the rest is checked
//! by the builders, on first use.

use std::time::Duration;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::spanned::Spanned;
use syn::{Error, Expr, Lit, LitStr, Pat, Result, Token, UnOp, parenthesized};

/// What an attribute may be told, and how it is written.
struct Argument {
    name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// The breaker's or the budget's name.
    Text,
    /// A whole number, at least so much.
    Whole(u32),
    /// Seconds; whether zero is one of them.
    Seconds { zero: bool },
    /// A number, 1 or more.
    Factor,
    /// `true` or `false`.
    Flag,
    /// Patterns of the error type.
    Patterns,
}

const CIRCUIT_BREAKER: &[Argument] = &[
    Argument { name: "name", kind: Kind::Text },
    Argument { name: "fail_max", kind: Kind::Whole(1) },
    Argument { name: "reset_timeout", kind: Kind::Seconds { zero: false } },
    Argument { name: "success_threshold", kind: Kind::Whole(1) },
    Argument { name: "excluded", kind: Kind::Patterns },
];

const WITH_RETRY: &[Argument] = &[
    Argument { name: "max_retries", kind: Kind::Whole(0) },
    Argument { name: "base_delay", kind: Kind::Seconds { zero: true } },
    Argument { name: "max_delay", kind: Kind::Seconds { zero: false } },
    Argument { name: "exponential_base", kind: Kind::Factor },
    Argument { name: "jitter", kind: Kind::Flag },
    Argument { name: "retryable", kind: Kind::Patterns },
    Argument { name: "budget", kind: Kind::Text },
];

/// The arguments of `circuit_breaker`.
pub(crate) struct BreakerArguments {
    /// The breaker's name.
    pub(crate) name: Expr,
    /// Calls on the builder, such as `.fail_max(5)`.
    pub(crate) settings: TokenStream,
    /// Errors that say nothing about the service.
    pub(crate) excluded: Option<Patterns>,
}

/// The arguments of `with_retry`.
pub(crate) struct RetryArguments {
    /// Calls on the builder, such as `.max_retries(3)`.
    pub(crate) settings: TokenStream,
    /// Errors worth another attempt; none given means all.
    pub(crate) retryable: Option<Patterns>,
}

/// Patterns of the error type, each with its guard.
pub(crate) struct Patterns(Vec<(Pat, Option<Expr>)>);

impl Patterns {
    /// A closure that tells whether an error matches one of them.
    pub(crate) fn matcher(&self) -> TokenStream {
        let arms = self.0.iter().map(|(pattern, guard)| match guard {
            Some(guard) => quote!(#pattern if #guard => true,),
            None => quote!(#pattern => true,),
        });
        quote_spanned! {Span::mixed_site()=>
            |error| {
                #[allow(unreachable_patterns)]
                match error { #(#arms)* _ => false }
            }
        }
    }
}

impl BreakerArguments {
    pub(crate) fn parse(arguments: TokenStream, support: &TokenStream) -> Result<Self> {
        let given = Given::parse("circuit_breaker", CIRCUIT_BREAKER, arguments)?;
        let Some(name) = given.expr("name") else {
            let cure = r#"`circuit_breaker` needs the name of what it guards: `circuit_breaker("payments")`"#;
            return Err(Error::new(Span::call_site(), cure));
        };
        Ok(Self {
            name: name.clone(),
            settings: given.settings(support)?,
            excluded: given.patterns,
        })
    }
}

impl RetryArguments {
    pub(crate) fn parse(arguments: TokenStream, support: &TokenStream) -> Result<Self> {
        let given = Given::parse("with_retry", WITH_RETRY, arguments)?;
        given.check_delays()?;
        Ok(Self { settings: given.settings(support)?, retryable: given.patterns })
    }
}

/// The arguments as written.
struct Given {
    values: Vec<(Ident, Kind, Expr)>,
    patterns: Option<Patterns>,
}

impl Given {
    fn parse(attribute: &str, known: &[Argument], arguments: TokenStream) -> Result<Self> {
        let parser = |input: ParseStream<'_>| {
            let mut given = Self { values: Vec::new(), patterns: None };
            while !input.is_empty() {
                given.read(attribute, known, input)?;
                if !input.is_empty() {
                    input.parse::<Token![,]>()?;
                }
            }
            Ok(given)
        };
        parser.parse2(arguments)
    }

    fn read(&mut self, attribute: &str, known: &[Argument], input: ParseStream<'_>) -> Result<()> {
        let named = input.peek2(Token![=]) && !input.peek2(Token![==]);
        let listed = input.peek(syn::Ident::peek_any) && input.peek2(syn::token::Paren);
        if !named && !listed {
            return self.read_position(attribute, known, input);
        }
        let key = input.call(Ident::parse_any)?;
        let Some(argument) = known.iter().find(|argument| key == argument.name) else {
            return Err(Error::new(key.span(), unknown(attribute, known, &key)));
        };
        let again = match argument.kind {
            Kind::Patterns => self.patterns.is_some(),
            _ => self.expr(argument.name).is_some(),
        };
        if again {
            return Err(Error::new(key.span(), format!("`{key}` is given twice")));
        }
        match argument.kind {
            Kind::Patterns if listed => self.patterns = Some(patterns(&key, input)?),
            Kind::Patterns => {
                let cure = format!("patterns go in parentheses: `{key}(MyError::Timeout(_))`");
                return Err(Error::new(key.span(), cure));
            }
            _ if listed => {
                return Err(Error::new(key.span(), format!("write `{key} = …`")));
            }
            kind => {
                input.parse::<Token![=]>()?;
                self.values.push((key, kind, input.parse()?));
            }
        }
        Ok(())
    }

    /// The breaker's name, the only argument that needs none of its own: the first, as in Python.
    fn read_position(
        &mut self,
        attribute: &str,
        known: &[Argument],
        input: ParseStream<'_>,
    ) -> Result<()> {
        let value: Expr = input.parse()?;
        let names = |argument: &&Argument| argument.name == "name";
        match known.iter().find(names) {
            Some(argument) if self.values.is_empty() && self.patterns.is_none() => {
                self.values.push((Ident::new("name", value.span()), argument.kind, value));
                Ok(())
            }
            Some(_) => {
                let cure = "only the name goes without `name = `, and it comes first";
                Err(Error::new(value.span(), cure))
            }
            None => {
                let cure = format!("`{attribute}` takes {}", list(known));
                Err(Error::new(value.span(), cure))
            }
        }
    }

    fn expr(&self, name: &str) -> Option<&Expr> {
        self.values.iter().find(|(key, ..)| key == name).map(|(.., value)| value)
    }

    /// Calls on the builder for everything but the name.
    fn settings(&self, support: &TokenStream) -> Result<TokenStream> {
        let mut settings = TokenStream::new();
        for (key, kind, value) in &self.values {
            let value = checked(key, *kind, value, support)?;
            if key == "budget" {
                let value = quote!(#support::RetryBudget::named(#value));
                settings.extend(quote_spanned!(key.span()=> .budget(#value)));
            } else if key != "name" {
                settings.extend(quote_spanned!(key.span()=> .#key(#value)));
            }
        }
        Ok(settings)
    }

    /// The one rule that spans two arguments, as far as literals and defaults show it.
    fn check_delays(&self) -> Result<()> {
        let (base, max) = (self.expr("base_delay"), self.expr("max_delay"));
        let known = |given: Option<&Expr>, default| match given {
            Some(expr) => Literal::of(expr).and_then(|literal| literal.seconds()),
            None => Some(Duration::from_secs(default)),
        };
        let (Some(base_delay), Some(max_delay)) = (known(base, 1), known(max, 60)) else {
            return Ok(());
        };
        let at = base.or(max).map_or_else(Span::call_site, Spanned::span);
        match base_delay > max_delay {
            true => Err(Error::new(
                at,
                format!(
                    "`base_delay` ({} s) is above `max_delay` ({} s): give both",
                    base_delay.as_secs_f64(),
                    max_delay.as_secs_f64()
                ),
            )),
            false => Ok(()),
        }
    }
}

/// The tokens of a value that a builder takes.
fn checked(key: &Ident, kind: Kind, value: &Expr, support: &TokenStream) -> Result<TokenStream> {
    let name = key.to_string();
    let literal = Literal::of(value);
    let wrong = |allowed: &str| {
        let held = quote!(#value).to_string().replace("- ", "-");
        Err(Error::new_spanned(value, format!("`{name}` is {held}; allowed: {allowed}")))
    };
    let span = value.span();
    match (kind, &literal) {
        (Kind::Text, Some(Literal::Text(text))) if !text.value().is_empty() => Ok(quote!(#text)),
        (Kind::Text, Some(_)) => wrong("a name in quotes"),
        (Kind::Whole(least), Some(literal)) => match literal.whole() {
            Some(number) if number >= least => Ok(quote_spanned!(span=> #number)),
            _ => wrong(&format!("a whole number, {least} or more")),
        },
        (Kind::Seconds { zero }, Some(literal)) => match literal.seconds() {
            Some(time) if zero || !time.is_zero() => {
                let (seconds, nanos) = (time.as_secs(), time.subsec_nanos());
                Ok(quote_spanned!(span=> ::core::time::Duration::new(#seconds, #nanos)))
            }
            _ if zero => wrong("seconds, 0 or more, such as 1 or 0.5, or a `Duration`"),
            _ => wrong("seconds above 0, such as 60 or 0.5, or a `Duration`"),
        },
        (Kind::Seconds { .. }, None) => {
            Ok(quote_spanned!(span=> #support::duration(#name, #value)))
        }
        (Kind::Factor, Some(literal)) => match literal.number() {
            Some(factor) if factor >= 1.0 && factor.is_finite() => {
                Ok(quote_spanned!(span=> #factor))
            }
            _ => wrong("a number, 1 or more, such as 2.0"),
        },
        (Kind::Flag, Some(Literal::Flag(flag))) => Ok(quote_spanned!(span=> #flag)),
        (Kind::Flag, Some(_)) => wrong("`true` or `false`"),
        (Kind::Text | Kind::Whole(_) | Kind::Factor | Kind::Flag, None) => Ok(quote!(#value)),
        (Kind::Patterns, _) => unreachable!("patterns are kept apart from values"),
    }
}

/// A value that can be checked while compiling.
enum Literal {
    Text(LitStr),
    Flag(bool),
    /// Digits without their sign and suffix.
    Number {
        digits: String,
        negative: bool,
        whole: bool,
    },
    Other,
}

impl Literal {
    fn of(value: &Expr) -> Option<Self> {
        match value {
            // A `macro_rules` argument comes wrapped.
            Expr::Group(group) => Self::of(&group.expr),
            Expr::Paren(paren) => Self::of(&paren.expr),
            Expr::Unary(unary) if matches!(unary.op, UnOp::Neg(_)) => {
                match Self::of(&unary.expr)? {
                    Self::Number { digits, negative, whole } => {
                        Some(Self::Number { digits, negative: !negative, whole })
                    }
                    _ => Some(Self::Other),
                }
            }
            Expr::Lit(literal) => Some(match &literal.lit {
                Lit::Str(text) => Self::Text(text.clone()),
                Lit::Bool(flag) => Self::Flag(flag.value),
                Lit::Int(number) => {
                    let digits = number.base10_digits().to_owned();
                    Self::Number { digits, negative: false, whole: true }
                }
                Lit::Float(number) => {
                    let digits = number.base10_digits().to_owned();
                    Self::Number { digits, negative: false, whole: false }
                }
                _ => Self::Other,
            }),
            _ => None,
        }
    }

    fn whole(&self) -> Option<u32> {
        match self {
            Self::Number { digits, negative: false, whole: true } => digits.parse().ok(),
            _ => None,
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Number { digits, negative, .. } => {
                digits.parse().ok().map(|number: f64| if *negative { -number } else { number })
            }
            _ => None,
        }
    }

    fn seconds(&self) -> Option<Duration> {
        match self {
            Self::Number { digits, negative: false, whole: true } => {
                digits.parse().ok().map(Duration::from_secs)
            }
            _ => self.number().and_then(|number| Duration::try_from_secs_f64(number).ok()),
        }
    }
}

fn patterns(key: &Ident, input: ParseStream<'_>) -> Result<Patterns> {
    let list;
    parenthesized!(list in input);
    let mut patterns = Vec::new();
    while !list.is_empty() {
        let pattern = Pat::parse_multi_with_leading_vert(&list)?;
        let guard = match list.parse::<Option<Token![if]>>()? {
            Some(_) => Some(list.parse()?),
            None => None,
        };
        patterns.push((pattern, guard));
        if !list.is_empty() {
            list.parse::<Token![,]>()?;
        }
    }
    if patterns.is_empty() {
        return Err(Error::new(key.span(), format!("`{key}()` names no error")));
    }
    Ok(Patterns(patterns))
}

fn unknown(attribute: &str, known: &[Argument], key: &Ident) -> String {
    let cure = match key.to_string().as_str() {
        "excluded_exceptions" if attribute == "circuit_breaker" => {
            "name error patterns: `excluded(MyError::Invalid(_))`".to_owned()
        }
        "retryable_exceptions" if attribute == "with_retry" => {
            "name error patterns: `retryable(MyError::Timeout(_))`".to_owned()
        }
        _ => format!("`{attribute}` takes {}", list(known)),
    };
    format!("unknown argument `{key}`: {cure}")
}

fn list(known: &[Argument]) -> String {
    let names: Vec<_> = known
        .iter()
        .map(|argument| match argument.kind {
            Kind::Patterns => format!("`{}(…)`", argument.name),
            _ => format!("`{}`", argument.name),
        })
        .collect();
    names.join(", ")
}
