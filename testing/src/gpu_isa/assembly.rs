//! Counts the instructions of AMD assembly, loop by loop.

/// Instructions that run at a quarter of the usual rate.
const QUARTER: [&str; 16] = [
    "v_mul_lo_u32",
    "v_mul_hi_u32",
    "v_mul_hi_i32",
    "v_mul_lo_i32",
    "v_mad_u64_u32",
    "v_mad_i64_i32",
    "v_exp_f32",
    "v_log_f32",
    "v_rcp_f32",
    "v_rsq_f32",
    "v_rcp_iflag_f32",
    "v_sqrt_f32",
    "v_lshlrev_b64",
    "v_lshrrev_b64",
    "v_ashrrev_i64",
    "v_ashrrev_i64",
];

/// Counts of instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counts {
    /// Turns of a vector unit: 1 for an instruction, 4 for one of a quarter of the rate.
    pub(super) slots: u32,
    /// Instructions of the scalar unit.
    pub(super) scalar: u32,
    /// Loads from memory by vector instructions, and their bytes for each lane.
    pub(super) loads: u32,
    pub(super) bytes: u32,
    /// Operations on workgroup memory.
    pub(super) lds: u32,
    /// Multiplications that add.
    pub(super) fmas: u32,
    /// Loads that are under way at one time at most: those before the first wait for one.
    pub(super) in_flight: u32,
}

impl Counts {
    fn of<'a>(instructions: impl Iterator<Item = &'a str>) -> Self {
        let mut counts = Counts::default();
        let mut waiting = 0;
        for line in instructions {
            let name = line.split_whitespace().next().unwrap_or_default();
            let starts = |list: &[&str]| list.iter().any(|start| name.starts_with(start));
            if starts(&["s_waitcnt", "s_wait_"]) {
                if line.contains("vmcnt") || line.contains("loadcnt") {
                    waiting = 0;
                }
            } else if starts(&["v_"]) {
                let quarter = QUARTER.iter().any(|slow| name.starts_with(slow));
                counts.slots += if quarter { 4 } else { 1 };
                let fma = ["fma", "mac_f32", "mad_f32"].iter().any(|part| name.contains(part));
                counts.fmas += u32::from(fma);
            } else if starts(&["ds_"]) {
                counts.lds += 1;
            } else if starts(&["buffer_load", "global_load", "flat_load"]) {
                waiting += 1;
                counts.loads += 1;
                counts.in_flight = counts.in_flight.max(waiting);
                counts.bytes += match name.rsplit('_').next().unwrap_or_default() {
                    "b64" | "dwordx2" => 8,
                    "b96" | "dwordx3" => 12,
                    "b128" | "dwordx4" => 16,
                    "u8" | "ubyte" => 1,
                    "u16" | "ushort" => 2,
                    _ => 4,
                };
            } else if starts(&["s_"])
                && !starts(&["s_delay", "s_clause", "s_nop", "s_branch", "s_cbranch", "s_barrier"])
                && !starts(&["s_load", "s_buffer_load"])
            {
                counts.scalar += 1;
            }
        }
        counts
    }
}

/// A loop: its blocks, how many loops it is inside of, and the counts of what is in no inner loop.
#[derive(Clone, Debug)]
pub(super) struct Loop {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) depth: usize,
    pub(super) own: Counts,
}

impl Loop {
    /// Whether `other` is inside.
    pub(super) fn holds(&self, other: &Loop) -> bool {
        (self.first, self.last) != (other.first, other.last)
            && self.first <= other.first
            && other.last <= self.last
    }
}

/// The loops of a kernel in the order of their first blocks.
pub(super) fn loops(assembly: &str) -> Vec<Loop> {
    let mut labels: Vec<&str> = Vec::new();
    let mut blocks: Vec<Vec<&str>> = Vec::new();
    for line in assembly.lines() {
        let text = line.split(';').next().unwrap_or_default().trim();
        if let Some(label) = text.strip_suffix(':').filter(|label| label.starts_with("BB")) {
            labels.push(label);
            blocks.push(Vec::new());
        } else if let (false, Some(block)) = (text.is_empty(), blocks.last_mut()) {
            block.push(text);
        }
    }
    // A branch to the same or an earlier block ends a loop. Of several for one block, the last.
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for (at, block) in blocks.iter().enumerate() {
        for line in block.iter().filter(|l| l.starts_with("s_branch") || l.starts_with("s_cbranch"))
        {
            let target = line.split_whitespace().nth(1).unwrap_or_default();
            let Some(to) = labels[..=at].iter().position(|label| *label == target) else {
                continue;
            };
            match spans.iter_mut().find(|(first, _)| *first == to) {
                Some((_, last)) => *last = at,
                None => spans.push((to, at)),
            }
        }
    }
    spans.sort_unstable();
    let inside = |a: (usize, usize), b: (usize, usize)| a != b && b.0 <= a.0 && a.1 <= b.1;
    let of = |&span: &(usize, usize)| {
        let inner: Vec<_> = spans.iter().filter(|&&other| inside(other, span)).collect();
        let own = (span.0..=span.1)
            .filter(|at| !inner.iter().any(|(first, last)| (first..=last).contains(&at)));
        Loop {
            first: span.0,
            last: span.1,
            depth: spans.iter().filter(|&&other| inside(span, other)).count(),
            own: Counts::of(own.flat_map(|at| blocks[at].iter().copied())),
        }
    };
    spans.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_found_and_counted() {
        let text = "
BB0:
    s_mov_b32 s0, 0  ; be800080
BB1:
    buffer_load_b128 v[0:3], v0, s[0:3], 0 offen
    buffer_load_u16 v4, v0, s[0:3], 0 offen
    s_waitcnt vmcnt(0)
    buffer_load_b32 v4, v0, s[0:3], 0 offen
    v_fma_f32 v0, v1, v2, v3
BB2:
    v_mul_lo_u32 v1, v1, v2
    ds_store_b32 v1, v2
    s_cbranch_scc1 BB2
BB3:
    s_add_i32 s0, s0, 1
    s_cbranch_scc1 BB1
BB4:
    v_exp_f32_e32 v1, v2
";
        let found = loops(text);
        assert_eq!(found.len(), 2);
        let (outer, inner) = (&found[0], &found[1]);
        assert!(outer.holds(inner) && !inner.holds(outer) && inner.depth == 1);
        let expected =
            Counts { slots: 1, scalar: 1, loads: 3, bytes: 22, lds: 0, fmas: 1, in_flight: 2 };
        assert_eq!(outer.own, expected);
        assert_eq!((inner.own.slots, inner.own.lds), (4, 1));
    }
}
