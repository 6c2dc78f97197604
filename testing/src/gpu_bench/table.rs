//! The table of results, as text and as JSON.

use std::fmt::Write as _;

/// One line of the table.
pub(super) struct Row {
    pub(super) shape: (usize, usize),
    pub(super) batch: usize,
    pub(super) kernel: String,
    pub(super) microseconds: f64,
    pub(super) moved_bytes: f64,
    pub(super) of_copy: f64,
    pub(super) vs_plain: f64,
    pub(super) mismatches: usize,
    pub(super) of_bound: f64,
}

/// Prints the head of the table.
pub(super) fn print_head() {
    println!(
        "{:>12} {:>5} {:>14} {:>11} {:>9} {:>9} {:>7} {:>8} {:>10} {:>8}",
        "shape",
        "batch",
        "kernel",
        "us",
        "GB/s",
        "bf16 GB/s",
        "of copy",
        "vs plain",
        "mismatches",
        "of bound"
    );
}

impl Row {
    pub(super) fn print(&self) {
        let (m, k) = self.shape;
        let rate = |bytes: f64| bytes / self.microseconds / 1e3;
        println!(
            "{:>12} {:>5} {:>14} {:>11.1} {:>9.1} {:>9.1} {:>7.3} {:>8.3} {:>10} {:>8.3}",
            format!("{m}x{k}"),
            self.batch,
            self.kernel,
            self.microseconds,
            rate(self.moved_bytes),
            rate((2 * m * k) as f64),
            self.of_copy,
            self.vs_plain,
            self.mismatches,
            self.of_bound,
        );
    }
}

/// The table as JSON.
pub(super) fn json(device: &str, bandwidth: f64, rows: &[Row]) -> String {
    let mut out = format!("{{\"device\": {device:?}, \"copy_gb_s\": {bandwidth:.3}, \"rows\": [");
    for (i, row) in rows.iter().enumerate() {
        let separator = if i == 0 { "" } else { "," };
        let (m, k) = row.shape;
        let finite = |v: f64| if v.is_finite() { format!("{v:.6}") } else { "null".into() };
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "{separator}\n{{\"rows\": {m}, \"cols\": {k}, \"batch\": {}, \"kernel\": {:?}, \
             \"us\": {:.3}, \"moved_bytes\": {:.0}, \"of_copy\": {}, \"vs_plain\": {}, \
             \"mismatches\": {}, \"of_bound\": {}}}",
            row.batch,
            row.kernel,
            row.microseconds,
            row.moved_bytes,
            finite(row.of_copy),
            finite(row.vs_plain),
            row.mismatches,
            finite(row.of_bound),
        );
    }
    out.push_str("\n]}\n");
    out
}
