#![allow(missing_docs)]
use bigsmall_tbe::*;
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    s.split(' ').next().unwrap().parse::<f64>().unwrap() * 1e-9
}
fn med(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}
fn time(name: &str, bytes: usize, mut f: impl FnMut()) {
    f();
    let v: Vec<f64> = (0..21)
        .map(|_| {
            let a = cpu();
            f();
            cpu() - a
        })
        .collect();
    println!("{name:40} {:8.2} GB/s", bytes as f64 / med(v) / 1e9);
}
fn main() {
    let k = 4096usize;
    for m in [256usize, 32768] {
        let n = m * k;
        let mut s = 88172645463325252u64;
        let mut rnd = || {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            s
        };
        let plain: Vec<u8> = (0..n)
            .flat_map(|_| {
                let sum: u32 = rnd().to_le_bytes().iter().map(|&b| b as u32).sum();
                let f = (sum as f32 - 1020.0) / 10000.0 + (rnd() & 255) as f32 * 1e-7;
                ((f.to_bits() >> 16) as u16).to_le_bytes()
            })
            .collect();
        let spec = TensorSpec::new("w", Dtype::BF16, &[m as u64, k as u64]).unwrap();
        let e = [Width::Three, Width::Four]
            .map(|w| encode_tensor(&Tbe::new(w), &spec, &plain, 2).unwrap());
        println!(
            "--- {} MiB size {:.3} {:.3}",
            n * 2 >> 20,
            e[0].byte_len() as f64 / plain.len() as f64,
            e[1].byte_len() as f64 / plain.len() as f64
        );
        let mut out = plain.clone();
        let reps = if m < 1000 { 20 } else { 1 };
        let b = 2 * n * reps;
        let x: Vec<f32> = (0..16 * k).map(|_| (rnd() >> 40) as f32 / 16777216.0 - 0.5).collect();
        let mut y = vec![0.0; 16 * m];
        time("memcpy", b, || {
            for _ in 0..reps {
                out.copy_from_slice(std::hint::black_box(&plain))
            }
        });
        time("xxh3 of encoded", b, || {
            for _ in 0..reps {
                for i in 0..e[0].table().n_blocks() {
                    e[0].table()
                        .check_block(
                            i,
                            &e[0].payload()[e[0].table().padded_block_range(i).start as usize
                                ..e[0].table().padded_block_range(i).end as usize],
                        )
                        .unwrap();
                }
            }
        });
        for bk in Backend::available() {
            for i in 0..2 {
                let tbe = Tbe::default().with_backend(bk).unwrap();
                let dec = e[i].open(&tbe).unwrap();
                time(&format!("decode_blocks {bk} {}", i + 3), b, || {
                    for _ in 0..reps {
                        for (j, o) in out.chunks_mut(131072).enumerate() {
                            dec.decode_blocks(&[e[i].block(j as u64)], o).unwrap()
                        }
                    }
                });
                time(&format!("decode_bytes {bk} {}", i + 3), b, || {
                    for _ in 0..reps {
                        e[i].decode_bytes(&tbe, 0..2 * n as u64, &mut out, 1).unwrap()
                    }
                });
            }
            let mm = Matmul::new(1).with_backend(bk).unwrap();
            for batch in [1, 4, 16] {
                time(&format!("plain b{batch} {bk}"), b, || {
                    for _ in 0..reps {
                        mm.plain(&spec, &plain, &x[..batch * k], batch, &mut y[..batch * m])
                            .unwrap()
                    }
                });
                for i in 0..2 {
                    let v = TbeView::new(&e[i]).unwrap();
                    time(&format!("tbe{} b{batch} {bk}", i + 3), b, || {
                        for _ in 0..reps {
                            mm.encoded(&v, &x[..batch * k], batch, &mut y[..batch * m]).unwrap()
                        }
                    });
                }
            }
        }
    }
}
