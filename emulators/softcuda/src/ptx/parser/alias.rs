//! `.alias a, b;`: the function `a` is `b`. Uses are renamed, so that nothing after the parser knows of aliases.

use super::super::syntax::{Error, Initial, Module, Operand, Statement};
use super::cursor::Cursor;
use std::collections::HashMap;

/// Alias to function.
pub(super) type Aliases = HashMap<String, String>;

/// Reads the directive.
pub(super) fn read(cursor: &mut Cursor, aliases: &mut Aliases) -> Result<(), Error> {
    cursor.next();
    let alias = cursor.word("a function's name")?.to_owned();
    cursor.mark(',')?;
    let function = cursor.word("a function's name")?.to_owned();
    cursor.mark(';')?;
    aliases.insert(alias, function);
    Ok(())
}

/// Renames the uses and drops the declarations of the aliases.
pub(super) fn resolve(module: &mut Module, aliases: &Aliases) {
    if aliases.is_empty() {
        return;
    }
    module.functions.retain(|function| function.body.is_some() || !aliases.contains_key(&function.name));
    for variable in &mut module.variables {
        for value in &mut variable.initial {
            if let Initial::Address { name, .. } = value {
                rename(name, aliases);
            }
        }
    }
    for statements in module.functions.iter_mut().filter_map(|function| function.body.as_mut()) {
        rename_in(statements, aliases);
    }
}

fn rename_in(statements: &mut [Statement], aliases: &Aliases) {
    for statement in statements {
        match statement {
            Statement::Scope(inner) => rename_in(inner, aliases),
            // A function's name stands in a call or is the source of a mov.
            Statement::Instruction(instruction)
                if instruction.opcode.first().is_some_and(|word| matches!(word.as_ref(), "call" | "mov")) =>
            {
                for operand in &mut instruction.operands {
                    if let Operand::Name(name) = operand {
                        rename(name, aliases);
                    }
                }
            }
            _ => {}
        }
    }
}

fn rename(name: &mut String, aliases: &Aliases) {
    if let Some(function) = aliases.get(name) {
        name.clone_from(function);
    }
}
