//! What the parser refuses of PTX, with its line.

use softcuda::ptx::parse;
use softcuda::ptx::parser::parse_statements;

/// The message of a text of statements that is refused.
fn refusal(text: &str) -> (u32, String) {
    match parse_statements(text) {
        Err(error) => (error.line, error.message),
        Ok(statements) => panic!("{text}: {statements:?}"),
    }
}

/// The message of a module that is refused; lines are counted from the text's first.
fn module_refusal(text: &str) -> (u32, String) {
    match parse(&format!(".version 9.0 .target sm_90 .address_size 64 {text}")) {
        Err(error) => (error.line, error.message),
        Ok(module) => panic!("{text}: {module:?}"),
    }
}

/// Text, its line, and what the message has to name.
fn assert_refusals(cases: &[(&str, u32, &str)], refuse: fn(&str) -> (u32, String)) {
    for (text, line, part) in cases {
        let (found_line, message) = refuse(text);
        assert!(message.contains(part), "{text}: {message}");
        assert_eq!(found_line, *line, "{text}: {message}");
    }
}

#[test]
fn refused_statements_name_the_line_and_what_was_found() {
    let cases = [
        ("bra a\n\nret;", 3, "expected ',' or ';', found 'ret'"),
        ("add.s32 a, b, c", 1, "expected ',' or ';', found the end of the text"),
        ("add.s32 a,, b;", 1, "expected an operand, found ','"),
        ("\n@ ;", 2, "expected a predicate after '@', found ';'"),
        ("@p {", 1, "expected an instruction, found '{'"),
        ("{ ret;\n", 2, "expected a statement or '}', found the end of the text"),
        ("ret; }", 1, "expected a statement, found '}'"),
        ("ld.b32 a, [b;", 1, "expected ']', found ';'"),
        ("ld.b32 a, [];", 1, "found ']'"),
        ("ld.b32 a, [b+c];", 1, "expected an integer, found 'c'"),
        ("ld.b32 a, [b+0f00000000];", 1, "expected an integer"),
        ("ld.b32 a, b[3];", 1, "b[...]: indexed variables are not supported"),
        ("mov.u32 a, {b, {c, d}};", 1, "expected an operand, found '{'"),
        ("mov.u32 a, 1+2;", 1, "constant expressions are not supported"),
        ("mov.u32 a, (1<<2);", 1, "constant expressions are not supported"),
        ("mov.u32 a, ~1;", 1, "constant expressions are not supported"),
        ("mov.u32 a, 5 % 2;", 1, "constant expressions are not supported"),
        ("mov.u32 a, 0x;", 1, "expected a number, found '0x'"),
        ("mov.u32 a, 08;", 1, "expected an integer of at most 64 bits, found '08'"),
        ("mov.u64 a, 18446744073709551616;", 1, "at most 64 bits"),
        ("mov.f32 a, 0f3F8;", 1, "expected 8 digits after 0f, found '3F8'"),
        ("mov.f64 a, 0d3FF;", 1, "expected 16 digits after 0d"),
        ("mov.u32 a, 1x;", 1, "expected a number, found '1x'"),
        (".reg .v8 .f32 v;", 1, "expected a register's type, found '.v8'"),
        (".reg .v2 .f32 v<4097>;", 1, "v: more than 4096 vectors"),
        (".reg .b33 v;", 1, "expected a register's type, found '.b33'"),
        (".reg .b32 a<b>;", 1, "expected the number of registers, found 'b'"),
        (".reg .b32 a<4294967296>;", 1, "at most 32 bits, found '4294967296'"),
        (".bogus 5;", 1, "found '.bogus'"),
        ("t: .branchtargets ;", 1, "expected a label, found ';'"),
        ("p: .callprototype (.param .b32 _) _\n}", 2, "expected ';', found '}'"),
        (".loc 1 2;", 1, "expected a column, found ';'"),
        (".pragma nounroll;", 1, "expected a pragma's text, found 'nounroll'"),
        ("mov.u32 a, `b;", 1, "found the character '`'"),
        ("ret; // fine\nmov.u32 ä, b;", 2, "found the character 'ä'"),
        ("/* \n\n", 1, "expected '*/'"),
        (".pragma \"open\n\";", 1, "expected '\"'"),
    ];
    assert_refusals(&cases, refusal);
}

#[test]
fn scopes_nest_only_so_deep() {
    let nested = |depth: usize| format!("{}{}", "{".repeat(depth), "}".repeat(depth));
    assert!(parse_statements(&nested(100)).is_ok());
    assert_eq!(refusal(&nested(101)), (1, "more than 100 scopes within each other".to_owned()));
}

#[test]
fn refused_modules_name_the_line_and_what_was_found() {
    let cases = [
        ("ret;", 1, "found 'ret'"),
        ("\n.global .b32 ;", 2, "expected a variable's name, found ';'"),
        (".global a;", 1, "expected a type, found 'a'"),
        (".global .pred a;", 1, "expected a type, found '.pred'"),
        (".global .texref t;", 1, ".texref: textures and surfaces are not supported"),
        (".const[2] .b32 a;", 1, "banks of .const are not supported"),
        (".global .align 3 .b32 a;", 1, "a power of two, found 3"),
        (".global .b32 a[2][];", 1, "expected an extent, found ']'"),
        (".global .b32 a[4294967296][4294967296];", 1, "more than 1099511627776 elements"),
        (".global .b32 a[0][4294967296][4294967296];", 1, "elements"),
        (".global .b32 a[2] = {1, 2, 3};", 1, "a has 2 elements and 3 initial values"),
        (".global .b32 a[2][2] = {{1, 2, 3}};", 1, "3 initial values between braces, expected at most 2"),
        (".global .b32 a[2] = {{1}, {2}};", 1, "more braces"),
        (".global .u8 a[8388608][2097152] = {{}, {}};", 1, "elements"),
        (".global .u8 a[2][2097152] = {{}, {}};", 1, "left out between inner braces"),
        (".global .b32 a = 1.5;", 1, "expected initial values of type .b32, found '1.5'"),
        (".global .b8 a[8] = {0xFF(f), 0xFF00(f)};", 1, "mask(name)"),
        (".global .b32 a<5>;", 1, "name<count> declares registers"),
        (".func f(.reg .b32 a[2]) { }", 1, "a: arrays and vectors in .reg are not passed"),
        (".func f(.reg .v2 .b32 a) { }", 1, "a: arrays and vectors in .reg are not passed"),
        (".func f(.global .b32 a) { }", 1, "expected '.param', found '.global'"),
        (".entry k(.param .b32 a\n.param .b32 b) { }", 2, "expected ',' or ')', found '.param'"),
        (".entry k() .bogus { }", 1, "found '.bogus'"),
        (".entry k()\nret;", 2, "expected '{' or ';' after a function's head, found 'ret'"),
        (".entry k() .maxntid { }", 1, "expected an extent, found '{'"),
        (".section .debug_info { {", 1, "expected '}', found the end of the text"),
        (".address_size 32", 1, "expected addresses of 64 bits, found 32"),
    ];
    assert_refusals(&cases, module_refusal);
}

#[test]
fn refused_heads() {
    for (text, part) in [
        ("", "expected '.version', found the end of the text"),
        (".target sm_90", "expected '.version', found '.target'"),
        (".version nine", "expected a version such as 9.0, found 'nine'"),
        (".version 9", "expected a version such as 9.0, found '9'"),
        (".version 9.0 .address_size 64", "expected '.target', found '.address_size'"),
        (".version 9.0 .target 90", "expected a target such as sm_90, found '90'"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.message.contains(part) && error.line == 1, "{text}: {error}");
    }
}
