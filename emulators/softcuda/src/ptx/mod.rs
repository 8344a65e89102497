//! PTX: text to syntax (`lexer`, `parser`), syntax to the decoded form that the machine runs (`decode`), and which
//! instructions a module may use (`target`).

pub mod decode;
pub mod lexer;
pub mod parser;
pub mod syntax;
pub mod target;
pub mod types;

pub use parser::parse;
pub use syntax::Error;
