//! Log lines. The host attaches the message's key and trace, and keeps them also when the
//! message fails.
//!
//! Fields come first, then the text, as with the `log` crate:
//!
//! ```
//! # use hapax_guest::prelude::*;
//! # fn example(user: &str, points: i64) {
//! log::info!("Credited {points} points");
//! log::warn!(user = user, points = points; "No account yet");
//! # }
//! ```

use crate::host;

pub use crate::bindings::hapax::plugin::log::Level;
#[doc(inline)]
pub use crate::{
    __debug as debug, __error as error, __info as info, __trace as trace, __warn as warn,
};

/// Writes a line. The macros of this module call it.
pub fn write(level: Level, message: &str, fields: &[(String, String)]) {
    host::log::write(level, message, fields);
}

#[doc(hidden)]
#[macro_export]
macro_rules! __log {
    ($level:ident, $($key:ident = $value:expr),+ $(,)?; $($text:tt)+) => {
        $crate::log::write(
            $crate::log::Level::$level,
            &::std::format!($($text)+),
            &[$((
                ::std::string::String::from(::core::stringify!($key)),
                ::std::string::ToString::to_string(&$value),
            )),+],
        )
    };
    ($level:ident, $($text:tt)+) => {
        $crate::log::write($crate::log::Level::$level, &::std::format!($($text)+), &[])
    };
}

/// Writes a line at level trace.
#[doc(hidden)]
#[macro_export]
macro_rules! __trace { ($($text:tt)+) => { $crate::__log!(Trace, $($text)+) }; }

/// Writes a line at level debug.
#[doc(hidden)]
#[macro_export]
macro_rules! __debug { ($($text:tt)+) => { $crate::__log!(Debug, $($text)+) }; }

/// Writes a line at level info.
#[doc(hidden)]
#[macro_export]
macro_rules! __info { ($($text:tt)+) => { $crate::__log!(Info, $($text)+) }; }

/// Writes a line at level warn.
#[doc(hidden)]
#[macro_export]
macro_rules! __warn { ($($text:tt)+) => { $crate::__log!(Warn, $($text)+) }; }

/// Writes a line at level error.
#[doc(hidden)]
#[macro_export]
macro_rules! __error { ($($text:tt)+) => { $crate::__log!(Error, $($text)+) }; }
