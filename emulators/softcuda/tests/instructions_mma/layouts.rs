//! Where the elements of the fragments of `mma.sync` lie, shape by shape, from the manual's "Matrix Fragments for mma"
//! sections; shares nothing with the implementation.

use softcuda::machine::registers::LANES;

/// Row and column of element `i` of a fragment in a lane.
pub(crate) type Place = fn(lane: usize, i: usize) -> (usize, usize);

/// One shape and type: how its fragments lie.
pub(crate) struct Layout {
    pub(crate) shape: &'static str,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    pub(crate) a_elements: usize,
    pub(crate) a: Place,
    pub(crate) b_elements: usize,
    pub(crate) b: Place,
    pub(crate) c_elements: usize,
    pub(crate) c: Place,
}

fn group(lane: usize) -> usize {
    lane >> 2
}

fn thread(lane: usize) -> usize {
    lane % 4
}

fn c_of_16_rows(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { group(lane) } else { group(lane) + 8 }, thread(lane) * 2 + (i & 1))
}

fn c_of_8_rows(lane: usize, i: usize) -> (usize, usize) {
    (group(lane), thread(lane) * 2 + (i & 1))
}

/// m16n8k8 of f16 and bf16.
pub(crate) const HALF_8: Layout = Layout {
    shape: "m16n8k8",
    rows: 16,
    depth: 8,
    a_elements: 4,
    a: |lane, i| (if i < 2 { group(lane) } else { group(lane) + 8 }, thread(lane) * 2 + (i & 1)),
    b_elements: 2,
    b: |lane, i| (thread(lane) * 2 + i, group(lane)),
    c_elements: 4,
    c: c_of_16_rows,
};

/// m16n8k16 of f16 and bf16.
pub(crate) const HALF_16: Layout = Layout {
    shape: "m16n8k16",
    rows: 16,
    depth: 16,
    a_elements: 8,
    a: |lane, i| {
        let row = if i < 2 || (4..6).contains(&i) { group(lane) } else { group(lane) + 8 };
        (row, if i < 4 { thread(lane) * 2 + (i & 1) } else { thread(lane) * 2 + (i & 1) + 8 })
    },
    b_elements: 4,
    b: |lane, i| (if i < 2 { thread(lane) * 2 + (i & 1) } else { thread(lane) * 2 + (i & 1) + 8 }, group(lane)),
    c_elements: 4,
    c: c_of_16_rows,
};

/// m16n8k4 of tf32 and of f64.
pub(crate) const WORD_4: Layout = Layout {
    shape: "m16n8k4",
    rows: 16,
    depth: 4,
    a_elements: 2,
    a: |lane, i| (if i == 0 { group(lane) } else { group(lane) + 8 }, thread(lane)),
    b_elements: 1,
    b: |lane, _| (thread(lane), group(lane)),
    c_elements: 4,
    c: c_of_16_rows,
};

/// m16n8k8 of tf32 and of f64.
pub(crate) const WORD_8: Layout = Layout {
    shape: "m16n8k8",
    rows: 16,
    depth: 8,
    a_elements: 4,
    a: |lane, i| {
        let row = if i == 0 || i == 2 { group(lane) } else { group(lane) + 8 };
        (row, if i < 2 { thread(lane) } else { thread(lane) + 4 })
    },
    b_elements: 2,
    b: |lane, i| (if i == 0 { thread(lane) } else { thread(lane) + 4 }, group(lane)),
    c_elements: 4,
    c: c_of_16_rows,
};

/// m8n8k4 of f64.
pub(crate) const DOUBLE: Layout = Layout {
    shape: "m8n8k4",
    rows: 8,
    depth: 4,
    a_elements: 1,
    a: |lane, _| (group(lane), thread(lane)),
    b_elements: 1,
    b: |lane, _| (thread(lane), group(lane)),
    c_elements: 2,
    c: c_of_8_rows,
};

/// m8n8k16 of 8-bit integers.
pub(crate) const BYTE_8_16: Layout = Layout {
    shape: "m8n8k16",
    rows: 8,
    depth: 16,
    a_elements: 4,
    a: |lane, i| (group(lane), thread(lane) * 4 + i),
    b_elements: 4,
    b: |lane, i| (thread(lane) * 4 + i, group(lane)),
    c_elements: 2,
    c: c_of_8_rows,
};

/// m16n8k16 of 8-bit integers and floating-point numbers.
pub(crate) const BYTE_16: Layout = Layout {
    shape: "m16n8k16",
    rows: 16,
    depth: 16,
    a_elements: 8,
    a: |lane, i| (if i < 4 { group(lane) } else { group(lane) + 8 }, thread(lane) * 4 + (i & 3)),
    b_elements: 4,
    b: |lane, i| (thread(lane) * 4 + i, group(lane)),
    c_elements: 4,
    c: c_of_16_rows,
};

/// m16n8k32 of 8-bit integers and floating-point numbers.
pub(crate) const BYTE_32: Layout = Layout {
    shape: "m16n8k32",
    rows: 16,
    depth: 32,
    a_elements: 16,
    a: |lane, i| {
        let row = if i < 4 || (8..12).contains(&i) { group(lane) } else { group(lane) + 8 };
        (row, if i < 8 { thread(lane) * 4 + (i & 3) } else { thread(lane) * 4 + (i & 3) + 16 })
    },
    b_elements: 8,
    b: |lane, i| (if i < 4 { thread(lane) * 4 + (i & 3) } else { thread(lane) * 4 + (i & 3) + 16 }, group(lane)),
    c_elements: 4,
    c: c_of_16_rows,
};

pub(crate) const LAYOUTS: [&Layout; 8] = [&HALF_8, &HALF_16, &WORD_4, &WORD_8, &DOUBLE, &BYTE_8_16, &BYTE_16, &BYTE_32];

#[test]
fn the_layouts_name_every_element_once() {
    for layout in LAYOUTS {
        for (elements, place, rows, columns) in [
            (layout.a_elements, layout.a, layout.rows, layout.depth),
            (layout.b_elements, layout.b, layout.depth, 8),
            (layout.c_elements, layout.c, layout.rows, 8),
        ] {
            let mut seen = vec![0; rows * columns];
            for lane in 0..LANES {
                for i in 0..elements {
                    let (row, column) = place(lane, i);
                    assert!(row < rows && column < columns, "{}", layout.shape);
                    seen[row * columns + column] += 1;
                }
            }
            assert!(seen.iter().all(|count| *count == 1), "{}", layout.shape);
        }
    }
}
