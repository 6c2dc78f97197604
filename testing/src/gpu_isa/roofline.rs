//! Predicts rates of products from counted instructions and data sheets. Nothing here is measured.

/// What a data sheet says of a GPU, and what is assumed.
struct Gpu {
    name: &'static str,
    /// GB/s of the data sheet, and the share that a long read reaches.
    bandwidth: f64,
    reached: f64,
    /// Lanes that issue in each cycle, and GHz.
    lanes: f64,
    clock: f64,
    /// The share of the issue slots that a kernel can use.
    issued: f64,
    /// Slots a weight that its compiler adds to those of RADV: checks of bounds, guards of loops.
    more: f64,
}

const fn gpu(
    name: &'static str,
    memory: (f64, f64),
    (lanes, clock): (f64, f64),
    issued: f64,
    more: f64,
) -> Gpu {
    Gpu { name, bandwidth: memory.0, reached: memory.1, lanes, clock, issued, more }
}

const GPUS: [Gpu; 10] = [
    gpu("RX 7900 XTX", (960.0, 0.9), (6144.0, 2.3), 0.8, 0.0),
    gpu("RX 6800", (512.0, 0.9), (3840.0, 2.1), 0.8, 0.0),
    gpu("MI300X", (5300.0, 0.8), (19456.0, 2.1), 0.75, 0.1),
    gpu("H100 SXM", (3350.0, 0.92), (16896.0, 1.755), 0.75, 2.6),
    gpu("H200", (4800.0, 0.9), (16896.0, 1.755), 0.75, 2.6),
    gpu("A100 80 GB", (2039.0, 0.9), (13824.0, 1.41), 0.75, 2.6),
    gpu("RTX 4090", (1008.0, 0.92), (16384.0, 2.52), 0.75, 2.6),
    gpu("L40S", (864.0, 0.9), (18176.0, 2.4), 0.75, 2.6),
    gpu("M3 Max, 40 cores", (400.0, 0.85), (5120.0, 1.4), 0.7, 1.1),
    gpu("Arc A770", (560.0, 0.8), (4096.0, 2.1), 0.7, 1.1),
];

/// Bytes a weight of each form, for the escapes of the counts.
const FORMS: [(&str, f64); 3] = [("plain", 2.0), ("dense3", 1.405), ("dense4", 1.504)];

/// Prints the table as Markdown. `slots` gives the slots a weight of a kernel.
pub(super) fn print(slots: impl Fn(&str) -> Option<f64>) {
    println!("| GPU | plain, Gweights/s | dense3 | times plain | dense4 | times plain |");
    println!("|---|---|---|---|---|---|");
    for gpu in &GPUS {
        let rates = FORMS.map(|(form, bytes)| {
            let memory = gpu.bandwidth * gpu.reached / bytes;
            let slots = slots(&format!("matvec_{form}_1")).unwrap_or(f64::NAN) + gpu.more;
            let issue = gpu.lanes * gpu.clock * gpu.issued / slots;
            (memory.min(issue), 100.0 * memory / issue)
        });
        let [plain, dense3, dense4] = rates;
        let text = |(rate, load): (f64, f64)| match load > 100.0 {
            true => format!("{rate:.0} (instructions)"),
            false => format!("{rate:.0} (memory, {load:.0} %)"),
        };
        println!(
            "| {} | {:.0} | {} | {:.2} | {} | {:.2} |",
            gpu.name,
            plain.0,
            text(dense3),
            dense3.0 / plain.0,
            text(dense4),
            dense4.0 / plain.0,
        );
    }
}
