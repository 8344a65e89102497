//! The parser against PTX ISA 9.0: every construct that nvcc and Triton write.

use softcuda::ptx::parse;
use softcuda::ptx::parser::parse_statements;
use softcuda::ptx::syntax::{Initial, Instruction, Module, Operand, Statement, Variable};
use softcuda::ptx::types::{Space, Type};

/// Operands in a notation of this test: names as they are, the others marked by their kind.
fn shown(operand: &Operand) -> String {
    let all = |operands: &[Operand]| operands.iter().map(shown).collect::<Vec<_>>().join(" ");
    match operand {
        Operand::Name(name) => name.clone(),
        Operand::Not(name) => format!("!{name}"),
        Operand::Integer(value) => format!("{value}"),
        Operand::Single(bits) => format!("single:{bits:08x}"),
        Operand::Double(bits) => format!("double:{bits:016x}"),
        Operand::Sink => "sink".to_owned(),
        Operand::Vector(elements) => format!("{{{}}}", all(elements)),
        Operand::Address { base, offset } => format!("[{}{offset:+}]", base.as_deref().unwrap_or("")),
        Operand::Offset(name, offset) => format!("{name}{offset:+}"),
        Operand::Pair(first, second) => format!("{}|{}", shown(first), shown(second)),
        Operand::List(elements) => format!("({})", all(elements)),
    }
}

fn only_instruction(text: &str) -> Instruction {
    match parse_statements(text).unwrap_or_else(|error| panic!("{text}: {error}")).as_slice() {
        [Statement::Instruction(instruction)] => instruction.clone(),
        other => panic!("{text}: {other:?}"),
    }
}

fn operands(text: &str) -> Vec<String> {
    only_instruction(text).operands.iter().map(shown).collect()
}

fn module(text: &str) -> Module {
    let text = format!(".version 9.0\n.target sm_90\n.address_size 64\n{text}");
    parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn only_variable(text: &str) -> Variable {
    let mut variables = module(text).variables;
    assert_eq!(variables.len(), 1, "{text}");
    variables.remove(0)
}

/// Bits as numbers, addresses as `name+offset`.
fn initial(text: &str) -> Vec<String> {
    let shown = |value: &Initial| match value {
        Initial::Bits(bits) => format!("{bits:#x}"),
        Initial::Address { name, offset } => format!("{name}{offset:+}"),
    };
    only_variable(text).initial.iter().map(shown).collect()
}

#[test]
fn the_head_is_read() {
    let module = parse("// comment\n.version 8.10\n.target sm_90a, debug\n.address_size 64\n").unwrap();
    assert_eq!((module.version, module.target.as_str()), ((8, 10), "sm_90a"));
    assert!(module.variables.is_empty() && module.functions.is_empty());
    assert!(parse(".version 7.0 .target sm_52, texmode_independent").is_ok());
}

#[test]
fn comments_and_blanks_stand_anywhere() {
    let text = "/* one\n two */ add . s32";
    let refused = parse_statements(text).expect_err("a blank after the dot");
    assert_eq!((refused.line, refused.message.as_str()), (2, "expected a word after '.'"));
    let instruction = only_instruction("\r\n\tadd.s32 // trailing ünïcode\n %r1,/**/%r2,\n/* ; */ -3 ;");
    assert_eq!(instruction.opcode.join("."), "add.s32");
    assert_eq!(instruction.line, 2);
    assert_eq!(instruction.operands.iter().map(shown).collect::<Vec<_>>(), ["%r1", "%r2", "-3"]);
}

#[test]
fn opcodes_split_at_dots_and_keep_double_colons() {
    let words = |text: &str| only_instruction(text).opcode.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(words("ret;"), ["ret"]);
    assert_eq!(
        words("ld.global.L1::evict_last.L2::128B.v4.f32 {a,b,c,d}, [p];"),
        ["ld", "global", "L1::evict_last", "L2::128B", "v4", "f32"]
    );
    assert_eq!(
        words("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [a], [b], 1, [c];"),
        ["cp", "async", "bulk", "shared::cluster", "global", "mbarrier::complete_tx::bytes"]
    );
    assert_eq!(words("fence.proxy.tensormap::generic.acquire.gpu [a], 128;")[2], "tensormap::generic");
    assert_eq!(words("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [a], 4;")[5], "shared::cta");
    assert_eq!(words("cp.async.bulk.tensor.2d.im2col::w::128.global a;")[5], "im2col::w::128");
    assert_eq!(words("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 a;")[3], "m16n8k16");
}

#[test]
fn guards() {
    let guard = |text: &str| only_instruction(text).guard.map(|guard| (guard.name, guard.negated));
    assert_eq!(guard("bra L;"), None);
    assert_eq!(guard("@%p1 bra L;"), Some(("%p1".to_owned(), false)));
    assert_eq!(guard("@!%p12 bra.uni $L__BB0_1;"), Some(("%p12".to_owned(), true)));
    assert_eq!(guard("@ p exit;"), Some(("p".to_owned(), false)));
}

#[test]
fn names_and_special_registers() {
    assert_eq!(operands("mov.u32 %r1, %tid.x;"), ["%r1", "%tid.x"]);
    assert_eq!(operands("mov.u32 %r1, %cluster_nctaid.z;"), ["%r1", "%cluster_nctaid.z"]);
    assert_eq!(operands("mov.u64 %rd1, _ZZ3fooE1x;"), ["%rd1", "_ZZ3fooE1x"]);
    assert_eq!(operands("mov.u64 %rd1, table+16;"), ["%rd1", "table+16"]);
    assert_eq!(operands("mov.u64 %rd1, table-4;"), ["%rd1", "table-4"]);
    assert_eq!(operands("mov.u32 r$1, WARP_SZ;"), ["r$1", "WARP_SZ"]);
}

#[test]
fn integers() {
    for (text, value) in [
        ("0", 0),
        ("42", 42),
        ("42U", 42),
        ("-2147483648", -2_147_483_648),
        ("0x1F", 31),
        ("0X1fU", 31),
        ("-0x10", -16),
        ("017", 15),
        ("0b101", 5),
        ("0B11U", 3),
        ("9223372036854775807", i64::MAX),
        ("-9223372036854775808", i64::MIN),
        ("0xFFFFFFFFFFFFFFFF", -1),
        ("18446744073709551615", -1),
    ] {
        assert_eq!(operands(&format!("mov.b64 %rd1, {text};")), ["%rd1".to_owned(), format!("{value}")], "{text}");
    }
}

#[test]
fn floating_point_literals() {
    // IEEE 754: 1 is 3f800000 and 3ff0000000000000.
    for (text, bits) in [
        ("0f3F800000", "single:3f800000"),
        ("0Fbf800000", "single:bf800000"),
        ("-0f3F800000", "single:bf800000"),
        ("0f7FFFFFFF", "single:7fffffff"),
        ("0d3FF0000000000000", "double:3ff0000000000000"),
        ("0DFFF8000000000000", "double:fff8000000000000"),
        ("-0d0000000000000000", "double:8000000000000000"),
        ("1.0", "double:3ff0000000000000"),
        ("-2.5", "double:c004000000000000"),
        ("1e3", "double:408f400000000000"),
        ("1.0E+3", "double:408f400000000000"),
        ("5.0e-1", "double:3fe0000000000000"),
    ] {
        assert_eq!(operands(&format!("mov.f64 %fd1, {text};")), ["%fd1", bits], "{text}");
    }
}

#[test]
fn addresses() {
    for (text, expected) in [
        ("[%rd1]", "[%rd1+0]"),
        ("[%rd1+16]", "[%rd1+16]"),
        ("[%rd1+-8]", "[%rd1-8]"),
        ("[%rd1-8]", "[%rd1-8]"),
        ("[ %rd6 + 0x10 ]", "[%rd6+16]"),
        ("[kernel_param_0+4]", "[kernel_param_0+4]"),
        ("[name+4+-8]", "[name-4]"),
        ("[128]", "[+128]"),
        ("[64+4]", "[+68]"),
    ] {
        assert_eq!(operands(&format!("ld.b32 %r1, {text};")), ["%r1", expected], "{text}");
    }
    assert_eq!(operands("ld.global.b32 %r1, [%rd1].unified, %rd2;"), ["%r1", "[%rd1+0]", "%rd2"]);
}

#[test]
fn further_parts_of_an_address_follow_it() {
    let text = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
        [%r1], [%rd1, {%r2, %r3}], [%r4], %rs1;";
    assert_eq!(operands(text), ["[%r1+0]", "[%rd1+0]", "{%r2 %r3}", "[%r4+0]", "%rs1"]);
    assert_eq!(operands("tex.2d.v4.f32.f32 {a,b,c,d}, [t, s, {x, y}];"), ["{a b c d}", "[t+0]", "s", "{x y}"]);
}

#[test]
fn vectors_pairs_negations_and_sinks() {
    assert_eq!(operands("ld.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];"), ["{%r1 %r2 %r3 %r4}", "[%rd1+0]"]);
    assert_eq!(operands("ld.b16 { %rs6 }, [ %rd6 + 8 ];"), ["{%rs6}", "[%rd6+8]"]);
    assert_eq!(operands("mov.b64 {%r1, _}, %rd1;"), ["{%r1 sink}", "%rd1"]);
    assert_eq!(operands("st.v2.b32 [%rd1], {0, -1};"), ["[%rd1+0]", "{0 -1}"]);
    assert_eq!(operands("setp.lt.and.s32 %p1|%p2, %r1, %r2, !%p3;"), ["%p1|%p2", "%r1", "%r2", "!%p3"]);
    assert_eq!(operands("shfl.sync.idx.b32 _|%p1, %r1, 0, 31, -1;"), ["sink|%p1", "%r1", "0", "31", "-1"]);
    assert_eq!(operands("setp.lt.s32 %p1|_, 1, 2;"), ["%p1|sink", "1", "2"]);
    assert_eq!(operands("mbarrier.arrive.b64 _, [%r1];"), ["sink", "[%r1+0]"]);
}

#[test]
fn calls() {
    let text = "call.uni (retval0), \nfunction, \n(\nparam0, \nparam1\n);";
    assert_eq!(operands(text), ["(retval0)", "function", "(param0 param1)"]);
    assert_eq!(operands("call (r), %rd1, (a, 5, _), prototype_3;"), ["(r)", "%rd1", "(a 5 sink)", "prototype_3"]);
    assert_eq!(operands("call f;"), ["f"]);
    assert_eq!(operands("call f, ();"), ["f", "()"]);
}

#[test]
fn register_declarations() {
    let statements = parse_statements(".reg .b32 %a, %b<5>; .reg .pred p; .reg .f16x2 h<2>;").unwrap();
    let found: Vec<_> = statements
        .iter()
        .map(|statement| match statement {
            Statement::Register { ty, name, count } => (ty.name(), name.as_str(), *count),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(found, [("b32", "%a", None), ("b32", "%b", Some(5)), ("pred", "p", None), ("f16x2", "h", Some(2))]);
}

#[test]
fn labels_scopes_and_annotations() {
    let text = "
        $L1: mov.u32 a, b;
        { .reg .b32 t; { ret; } }
        {add.u32 a,a,a;}
        .pragma \"nounroll\";
        .loc 1 16 0
        .loc 2 314 12, function_name $L__info_string0, inlined_at 1 24 30
        .loc 2 314 12, function_name .debug_str+16, inlined_at 1 24 30
        table: .branchtargets $L1, $L2;
        prototype_3 : .callprototype (.param .b32 _) _ (.param .b32 _, .param .b32 _);
        targets: .calltargets f, g;
        $L2:
    ";
    let kinds: Vec<String> = parse_statements(text)
        .unwrap()
        .iter()
        .map(|statement| match statement {
            Statement::Label(name) => format!("label {name}"),
            Statement::Instruction(instruction) => format!("{} line {}", instruction.opcode[0], instruction.line),
            Statement::Scope(inner) => format!("scope of {}", inner.len()),
            Statement::BranchTargets { name, targets } => format!("{name} {}", targets.join(" ")),
            Statement::CallPrototype => "prototype".to_owned(),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected =
        ["label $L1", "mov line 2", "scope of 2", "scope of 1", "table $L1 $L2", "prototype", "prototype", "label $L2"];
    assert_eq!(kinds, expected);
}

#[test]
fn variables_in_bodies() {
    let text = ".local .align 8 .b8 \t__local_depot4[40]; .shared .align 16 .b8 tile[512]; .param .b32 param0;
        .param .align 8 .b8 retval0[16]; .extern .shared .align 16 .b8 dynamic[];";
    let found: Vec<_> = parse_statements(text)
        .unwrap()
        .into_iter()
        .map(|statement| match statement {
            Statement::Variable(variable) => {
                (variable.space, variable.align, variable.elements, variable.bytes(), variable.external)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        (Space::Local, 8, Some(40), 40, false),
        (Space::Shared, 16, Some(512), 512, false),
        (Space::Param, 4, Some(1), 4, false),
        (Space::Param, 8, Some(16), 16, false),
        (Space::Shared, 16, None, 0, true),
    ];
    assert_eq!(found, expected);
}

#[test]
fn variables_of_modules() {
    let variable = only_variable(".visible .global .align 16 .f32 matrix[4][8];");
    assert_eq!((variable.name.as_str(), variable.space, variable.ty), ("matrix", Space::Global, Type::F32));
    assert_eq!((variable.align, variable.elements, variable.external, variable.line), (16, Some(32), false, 4));
    assert!(variable.initial.is_empty());
    let variable = only_variable("\n.extern .const .u64 limits[];");
    assert_eq!((variable.space, variable.elements, variable.external, variable.line), (Space::Const, None, true, 5));
    // Without .align the element's size counts, the whole vector's if it is one.
    assert_eq!(only_variable(".weak .global .u64 a;").align, 8);
    let vector = only_variable(".global .v4 .f32 quads[2];");
    assert_eq!((vector.align, vector.elements, vector.bytes()), (16, Some(8), 32));
    let managed = only_variable(".visible .global .attribute(.managed, .unified(19, 95)) .align 4 .u32 counter;");
    assert_eq!((managed.align, managed.bytes()), (4, 4));
    let names: Vec<_> =
        module(".common .global .b32 a, b[3];").variables.into_iter().map(|v| (v.name, v.elements)).collect();
    assert_eq!(names, [("a".to_owned(), Some(1)), ("b".to_owned(), Some(3))]);
}

#[test]
fn initial_values() {
    assert_eq!(initial(".global .u32 a = 5;"), ["0x5"]);
    assert_eq!(initial(".global .s32 a[3] = {1, -1, 0x10};"), ["0x1", "0xffffffffffffffff", "0x10"]);
    assert_eq!(
        initial(".global .f32 a[4] = {0f3F800000, 1.0, -1.0, 2};"),
        ["0x3f800000", "0x3f800000", "0xbf800000", "0x40000000"]
    );
    assert_eq!(initial(".const .f64 a[2] = {0d3FF0000000000000, 0.5};"), ["0x3ff0000000000000", "0x3fe0000000000000"]);
    assert_eq!(initial(".global .b8 a[] = {};"), [""; 0]);
    let unsized_array = only_variable(".global .b16 a[] = {1, 2, 3};");
    assert_eq!((unsized_array.elements, unsized_array.bytes()), (Some(3), 6));
}

#[test]
fn nested_initial_values_fill_their_rows() {
    assert_eq!(initial(".global .u8 a[2][3] = {{1, 2}, {4}};"), ["0x1", "0x2", "0x0", "0x4", "0x0", "0x0"]);
    assert_eq!(initial(".global .u8 a[2][2] = {1, 2, 3, 4};"), ["0x1", "0x2", "0x3", "0x4"]);
    let text = ".global .s32 offset[][2] = { {-1, 0}, {0, -1}, {1, 0}, {0} };";
    assert_eq!(only_variable(text).elements, Some(8));
    assert_eq!(initial(text).len(), 8);
}

#[test]
fn addresses_as_initial_values() {
    assert_eq!(initial(".global .u64 a[4] = {f, g+8, generic(h), generic(h)+16};"), ["f+0", "g+8", "h+0", "h+16"]);
    assert_eq!(initial(".global .u64 a = generic(h+4)-12;"), ["h-8"]);
}

#[test]
fn kernels() {
    let text = "
        .visible .entry k(
            .param .u64 .ptr .global .align 1 k_param_0,
            .param .align 8 .b8 k_param_1[24],
            .param .u64 k_param_2,
            .param .v4 .f32 k_param_3
        )
        .explicitcluster .maxclusterrank 8 .minnctapersm 2 .maxnreg 64
        .maxntid 1024, 1, 1
        .reqntid 32, 4
        .reqnctapercluster 2
        .pragma \"nounroll\";
        { ret; }
        .entry empty { }
        .visible .entry _ZN3cub11EmptyKernelIvEEvv()
        {
        }";
    let module = module(text);
    let [kernel, empty, last] = module.functions.as_slice() else { panic!("{:?}", module.functions) };
    assert!(kernel.is_entry && kernel.returns.is_empty());
    assert_eq!((kernel.name.as_str(), kernel.line), ("k", 5));
    let parameters: Vec<_> =
        kernel.parameters.iter().map(|p| (p.name.as_str(), p.ty, p.align, p.bytes(), p.line)).collect();
    let expected = [
        ("k_param_0", Type::U64, 8, 8, 6),
        ("k_param_1", Type::B8, 8, 24, 7),
        ("k_param_2", Type::U64, 8, 8, 8),
        ("k_param_3", Type::F32, 16, 16, 9),
    ];
    assert_eq!(parameters, expected);
    assert!(kernel.parameters.iter().all(|parameter| parameter.space == Space::Param));
    assert_eq!(kernel.max_threads, Some([1024, 1, 1]));
    assert_eq!(kernel.required_threads, Some([32, 4, 1]));
    assert_eq!(kernel.required_cluster, Some([2, 1, 1]));
    assert_eq!(kernel.body.as_ref().map(Vec::len), Some(1));
    assert_eq!(empty.body.as_ref().map(Vec::len), Some(0));
    assert_eq!((last.max_threads, last.parameters.len()), (None, 0));
}

#[test]
fn device_functions_and_declarations() {
    let text = "
        .extern .func  (.param .b32 func_retval0) vprintf
        (
            .param .b64 vprintf_param_0,
            .param .b64 vprintf_param_1
        )
        ;
        .extern .func __assertfail (.param .b64 a) .noreturn ;
        .func .attribute(.unified(1, 2)) plain() .abi_preserve 8 { ret; }
        .visible .func  (.param .align 4 .b8 func_retval0[12]) f(.param .b32 f_param_0) { ret; }";
    let module = module(text);
    let found: Vec<_> = module
        .functions
        .iter()
        .map(|f| (f.name.as_str(), f.is_entry, f.returns.len(), f.parameters.len(), f.body.is_some()))
        .collect();
    let expected = [
        ("vprintf", false, 1, 2, false),
        ("__assertfail", false, 0, 1, false),
        ("plain", false, 0, 0, true),
        ("f", false, 1, 1, true),
    ];
    assert_eq!(found, expected);
    assert_eq!(module.functions[3].returns[0].bytes(), 12);
}

#[test]
fn aliases_are_renamed() {
    let text = "
        .visible .func a();
        .visible .func b() { ret; }
        .alias a, b;
        .global .u64 table[1] = {a};
        .entry k() { .reg .b64 %rd<2>; { call.uni a, (); } mov.u64 %rd1, a; }";
    let module = module(text);
    let names: Vec<_> = module.functions.iter().map(|function| function.name.as_str()).collect();
    assert_eq!(names, ["b", "k"]);
    assert!(matches!(&module.variables[0].initial[0], Initial::Address { name, .. } if name == "b"));
    let body = module.functions[1].body.as_ref().unwrap();
    let Statement::Scope(inner) = &body[1] else { panic!("{body:?}") };
    let (Statement::Instruction(call), Statement::Instruction(mov)) = (&inner[0], &body[2]) else { panic!("{body:?}") };
    assert_eq!((shown(&call.operands[0]), shown(&mov.operands[1])), ("b".to_owned(), "b".to_owned()));
}

#[test]
fn debug_information_is_skipped() {
    let text = "
        .file 1 \"/home/a b/kernel.cu\", 1700000000, 1234
        .file 2 \"other.cu\"
        .entry k() { .loc 1 1 1 ret; }
        .section\t.debug_str\n{\n$L__info_string0:\n.b8 116 // comment\n.b8 0\n}
        .section .debug_info { .b32 .debug_abbrev .b64 $L__tmp1 .b32 .debug_loc+16 }
        .section\t.debug_macinfo\t{\t}";
    assert_eq!(module(text).functions.len(), 1);
}

#[test]
fn the_ptx_of_a_triton_kernel_is_read() {
    let module = parse(include_str!("kernels/triton_softmax.ptx")).unwrap();
    assert_eq!(module.functions.len(), 1);
    assert_eq!(module.functions[0].required_threads, Some([128, 1, 1]));
    assert_eq!((module.variables[0].name.as_str(), module.variables[0].elements), ("global_smem", None));
}
