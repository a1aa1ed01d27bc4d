//! The `#[handler]` attribute.
//!
//! It leaves the function as it was written, so that tests can call it, and adds the code that
//! takes a message apart for it. On WebAssembly it also exports that code as the component's
//! `handle`. It adds nothing a reader would look for elsewhere: what it calls is in `hapax-guest`.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemFn, ReturnType, Signature, Type, parse_macro_input};

/// Makes a function the handler of this component. See `hapax_guest::handler`.
#[proc_macro_attribute]
pub fn handler(arguments: TokenStream, function: TokenStream) -> TokenStream {
    let arguments = Tokens::from(arguments);
    let function = parse_macro_input!(function as ItemFn);
    let glue = glue(&arguments, &function).unwrap_or_else(Error::into_compile_error);
    // The function is kept even when the attribute is misused: an editor then shows one error,
    // not one for each place that mentions the function.
    quote!(#function #glue).into()
}

/// The function behind the export. Every piece carries the span of what the user wrote, so that
/// a type that does not fit is reported there.
fn glue(arguments: &Tokens, function: &ItemFn) -> Result<Tokens, Error> {
    let signature = &function.sig;
    refuse(arguments, signature)?;
    let ReturnType::Type(_, returned) = &signature.output else {
        let text = "a handler returns Result<Outcome, Failure>";
        return Err(Error::new(signature.ident.span(), text));
    };
    // The compiler itself explains `self` outside an impl.
    let parameters = signature.inputs.iter().filter_map(|input| match input {
        FnArg::Typed(parameter) => Some(extract(&parameter.ty)),
        FnArg::Receiver(_) => None,
    });
    let name = &signature.ident;
    let into_result = quote_spanned! {returned.span()=>
        <#returned as ::hapax_guest::HandlerResult>::into_result
    };
    Ok(quote! {
        const _: () = {
            fn take_apart(
                message: &::hapax_guest::Message,
            ) -> ::core::result::Result<::hapax_guest::Outcome, ::hapax_guest::Failure> {
                #into_result(#name(#(#parameters),*))
            }
            ::hapax_guest::__private::export_handler!(take_apart);
        };
    })
}

/// Refuses what could only fail later, inside generated code.
fn refuse(arguments: &Tokens, signature: &Signature) -> Result<(), Error> {
    if !arguments.is_empty() {
        let text = "#[handler] takes no arguments";
        return Err(Error::new(arguments.span(), text));
    }
    if let Some(keyword) = signature.asyncness {
        let text = "a handler is not async: the calls of hapax_guest return when they are done";
        return Err(Error::new(keyword.span(), text));
    }
    if let Some(parameter) = signature.generics.type_params().next() {
        let text = "a handler has no type parameters: Hapax would not know what to fill in";
        return Err(Error::new(parameter.span(), text));
    }
    Ok(())
}

fn extract(parameter: &Type) -> Tokens {
    quote_spanned! {parameter.span()=>
        <#parameter as ::hapax_guest::FromMessage<'_>>::from_message(message)?
    }
}
