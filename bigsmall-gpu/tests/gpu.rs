//! The promises of the crate, tested on a device. Without a device the tests are counted as
//! ignored, and a line says so; with `BIGSMALL_REQUIRE_GPU=1` they fail.
#![allow(unreachable_pub, clippy::unwrap_used)]

mod common;
#[path = "../src/layout.rs"]
#[allow(dead_code)]
mod layout;

use bigsmall_codec::{Ans, Level};
use bigsmall_format::{Class, EncodedTensor};
use bigsmall_gpu::{
    Cooperative, ErrorKind, FormatError, MatmulBackend, PreparedAns, Resident, Rule, UploadOptions,
    Variant, Wgpu, WgpuWeights, wgpu,
};
use bigsmall_tbe::{Tbe, Width};
use common::device::{buffer, gpu, new_device, options, read, small_device};
use common::twin::{Twin, fused, unfused};
use common::*;

fn main() {
    if std::env::var_os(CHILD).is_some() {
        return fill_the_memory();
    }
    common::device::run(TESTS)
}

const TESTS: &[(&str, fn())] = &[
    ("all_bf16_patterns_decode", all_bf16_patterns_decode),
    ("any_bits_at_any_shape_decode", any_bits_at_any_shape_decode),
    ("fused_equals_plain_bit_for_bit", fused_equals_plain_bit_for_bit),
    ("every_variant_gives_the_same_bits", every_variant_gives_the_same_bits),
    ("ans_uploads_by_transcoding", ans_uploads_by_transcoding),
    ("ans_decodes_on_the_device", ans_decodes_on_the_device),
    ("ans_decodes_where_another_matrix_was", ans_decodes_where_another_matrix_was),
    ("packed_on_the_device_as_on_the_host", packed_on_the_device_as_on_the_host),
    ("packed_within_any_limits", packed_within_any_limits),
    ("what_cannot_be_packed_on_the_device", what_cannot_be_packed_on_the_device),
    ("damaged_ans_is_an_error", damaged_ans_is_an_error),
    ("malformed_tbe_is_never_uploaded", malformed_tbe_is_never_uploaded),
    ("ans_words_left_over_are_an_error", ans_words_left_over_are_an_error),
    ("products_equal_the_twin", products_equal_the_twin),
    ("errors_keep_within_the_bound", errors_keep_within_the_bound),
    ("tbe_uploads_directly", tbe_uploads_directly),
    ("the_smallest_form_is_chosen", the_smallest_form_is_chosen),
    ("nothing_to_multiply_is_no_error", nothing_to_multiply_is_no_error),
    ("wrong_lengths_are_errors", wrong_lengths_are_errors),
    ("tensors_of_another_device_are_errors", tensors_of_another_device_are_errors),
    ("buffers_of_another_device_are_errors", buffers_of_another_device_are_errors),
    ("rows_split_by_the_limits", rows_split_by_the_limits),
    ("more_workgroups_than_a_dimension_holds", more_workgroups_than_a_dimension_holds),
    ("rows_are_gathered", rows_are_gathered),
    ("layers_chain_on_the_device", layers_chain_on_the_device),
    ("a_step_is_one_submission", a_step_is_one_submission),
    ("what_is_dropped_is_free", what_is_dropped_is_free),
    ("commands_go_into_an_encoder_of_the_caller", commands_go_into_an_encoder_of_the_caller),
    ("threads_share_a_device", threads_share_a_device),
    ("a_lost_device_is_an_error", a_lost_device_is_an_error),
    ("no_adapter_is_an_error", no_adapter_is_an_error),
    (
        "a_driver_on_the_cpu_is_refused_unless_asked_for",
        a_driver_on_the_cpu_is_refused_unless_asked_for,
    ),
    ("no_memory_is_an_error", no_memory_is_an_error),
    ("unguarded_loops_change_nothing", unguarded_loops_change_nothing),
    ("cooperative_products_equal_the_twin", cooperative_products_equal_the_twin),
    (
        "cooperative_matrices_are_left_where_they_do_not_suit",
        cooperative_matrices_are_left_where_they_do_not_suit,
    ),
];

fn matmul(gpu: &Wgpu, weights: &WgpuWeights, x: &[f32], batch: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; batch * weights.rows()];
    gpu.matmul(weights, x, batch, &mut y).unwrap();
    y
}

fn decompress(gpu: &Wgpu, weights: &WgpuWeights) -> Vec<u8> {
    let mut bytes = vec![0xaa; 2 * weights.rows() * weights.cols()];
    gpu.decompress(weights, &mut bytes).unwrap();
    bytes
}

fn all_bf16_patterns_decode() {
    let weights: Vec<u16> = (0..=u16::MAX).collect();
    for (rows, cols) in [(64, 1024), (256, 256)] {
        let tensor = encoded(&weights, rows, cols);
        for form in Resident::ALL {
            let loaded = gpu().upload_with(&tensor, &in_form(form)).unwrap();
            assert_eq!(loaded.resident(), form);
            assert!(decompress(gpu(), &loaded) == bytes_of(&weights), "{form:?}");
        }
    }
}

const SHAPES: &[(usize, usize)] = &[
    (1, 1),
    (1, 100),
    (65, 1),
    (7, 9),
    (33, 127),
    (10, 128),
    (9, 1023),
    (40, 1024),
    (9, 1025),
    (16, 2816),
    (3, 16 * 1024),
    (3, 16 * 1024 + 3),
    (4, 18 * 1024 + 512),
];

// J-09, J-10
fn any_bits_at_any_shape_decode() {
    for &(rows, cols) in SHAPES {
        for weights in [any_bits(rows * cols, 11, false), model_weights(rows, cols, 12)] {
            let tensor = encoded(&weights, rows, cols);
            for form in Resident::ALL {
                let loaded = gpu().upload_with(&tensor, &in_form(form)).unwrap();
                assert!(decompress(gpu(), &loaded) == bytes_of(&weights), "{rows}x{cols} {form:?}");
            }
        }
    }
}

/// Every kernel, with batches that fill its columns and with smaller ones.
const BATCHES: &[usize] = &[1, 2, 3, 8, 9, 16, 17, 33, 65];

fn fused_equals_plain_bit_for_bit() {
    for &(rows, cols) in SHAPES {
        let model = (model_weights(rows, cols, 13), BATCHES);
        // Nearly all weights are escapes.
        let noise = (any_bits(rows * cols, 14, true), &[1, 4, 20][..]);
        for (weights, batches) in [model, noise] {
            let tensor = encoded(&weights, rows, cols);
            let [plain, dense3, dense4] =
                Resident::ALL.map(|form| gpu().upload_with(&tensor, &in_form(form)).unwrap());
            for &batch in batches {
                let x = model_x(batch * cols, 15);
                let expected = bits(&matmul(gpu(), &plain, &x, batch));
                for dense in [&dense3, &dense4] {
                    let what = format!("{rows}x{cols} batch {batch} {:?}", dense.resident());
                    assert_eq!(bits(&matmul(gpu(), dense, &x, batch)), expected, "{what}");
                }
            }
        }
    }
}

fn every_variant_gives_the_same_bits() {
    for (rows, cols) in [(40, 1024), (33, 5003), (3, 17 * 1024 + 130)] {
        let tensor = encoded(&model_weights(rows, cols, 40), rows, cols);
        for form in Resident::ALL {
            let loaded = gpu().upload_with(&tensor, &in_form(form)).unwrap();
            for batch in [1, 2, 4, 7, 10, 30, 70] {
                let x = gpu().new_buffer(batch * cols).unwrap();
                let y = gpu().new_buffer(batch * rows).unwrap();
                gpu().write_buffer(&x, &model_x(batch * cols, 41)).unwrap();
                let [a, b] = [Variant::Fused, Variant::DecodeFirst].map(|variant| {
                    gpu().submit(|r| r.matmul_by(&loaded, &x, batch, &y, variant)).unwrap();
                    let mut read = vec![0f32; batch * rows];
                    gpu().read_buffer(&y, &mut read).unwrap();
                    bits(&read)
                });
                assert_eq!(a, b, "{rows}x{cols} {form:?} batch {batch}");
            }
        }
    }
    // The result of tuning is kept, and can be replaced.
    let gpu = new_device();
    let loaded = gpu.upload(&encoded(&model_weights(64, 2048, 42), 64, 2048)).unwrap();
    let x = model_x(100 * 2048, 43);
    let before = matmul(&gpu, &loaded, &x, 100);
    let found = gpu.tune(&loaded, 100).unwrap();
    assert_eq!(gpu.tuning().get(loaded.resident(), 64, 2048, 100), found);
    for variant in ["fused", "decode-first"] {
        gpu.set_tuning(format!("dense3 64 2048 128 {variant}").parse().unwrap());
        assert_eq!(bits(&matmul(&gpu, &loaded, &x, 100)), bits(&before));
    }
}

fn ans_uploads_by_transcoding() {
    let (rows, cols) = (200, 1100);
    let weights = model_weights(rows, cols, 44);
    let loaded = gpu().upload(&encoded_by(&Ans::default(), &weights, rows, cols)).unwrap();
    assert_eq!(loaded.resident(), Resident::Dense3);
    assert!(decompress(gpu(), &loaded) == bytes_of(&weights));
}

fn decoded_on_device(tensor: &EncodedTensor) -> (Vec<u8>, bigsmall_gpu::Result<()>) {
    let ans = gpu().send_ans(&PreparedAns::new(tensor.clone()).unwrap()).unwrap();
    let n = tensor.spec().byte_len() as usize;
    let dst = gpu().new_buffer(n.div_ceil(4)).unwrap();
    gpu().submit(|r| r.decode_ans(&ans, &dst)).unwrap();
    let mut bytes = vec![0u8; n];
    gpu().read_buffer(&dst, &mut bytes).unwrap();
    (bytes, gpu().check_ans(&ans))
}

fn ans_decodes_on_the_device() {
    for (weights, rows, cols) in ans_cases() {
        for level in [Level::Fast, Level::Default, Level::Small] {
            let tensor = encoded_by(&Ans::new(level), &weights, rows, cols);
            let (bytes, verdict) = decoded_on_device(&tensor);
            assert!(verdict.is_ok(), "{rows}x{cols} {level:?}: {verdict:?}");
            assert!(bytes == bytes_of(&weights), "{rows}x{cols} {level:?}");
        }
        let tensor = encoded_by(&Ans::default(), &weights, rows, cols);
        for form in [None, Some(Resident::Plain)] {
            same_on_the_device(gpu(), &tensor, form, &format!("{rows}x{cols}"));
        }
    }
}

fn in_form(form: impl Into<Option<Resident>>) -> UploadOptions {
    UploadOptions::new().form(form)
}

fn on_device(form: impl Into<Option<Resident>>) -> UploadOptions {
    in_form(form).decode_on_device(true)
}

/// The bytes of every buffer.
fn resident_bytes(gpu: &Wgpu, weights: &WgpuWeights) -> Vec<Vec<u8>> {
    let read = |buffer: &&wgpu::Buffer| {
        let mut bytes = vec![0u8; buffer.size() as usize];
        gpu.read_buffer(buffer, &mut bytes).unwrap();
        bytes
    };
    weights.buffers().iter().map(read).collect()
}

/// Uploads `tensor` both ways, packed by the host and by the device, and compares everything that
/// is visible. Returns the matrix that the device packed.
fn same_on_the_device(
    gpu: &Wgpu,
    tensor: &EncodedTensor,
    form: Option<Resident>,
    what: &str,
) -> WgpuWeights {
    let host = gpu.upload_with(tensor, &in_form(form)).unwrap();
    let device = gpu.upload_with(tensor, &on_device(form)).unwrap();
    let what = format!("{what} {form:?}: {host:?}");
    assert!(device.decoded_on_device() && !host.decoded_on_device(), "{what}");
    assert_eq!(device.resident(), host.resident(), "{what}");
    assert_eq!(device.byte_len(), host.byte_len(), "{what}");
    assert_eq!((device.name(), device.n_shards()), (host.name(), host.n_shards()), "{what}");
    let pairs = resident_bytes(gpu, &device).into_iter().zip(resident_bytes(gpu, &host));
    for (i, (device, host)) in pairs.enumerate() {
        let wrong = device.iter().zip(&host).position(|(a, b)| a != b);
        assert!(device == host, "{what}: buffer {i} of {} bytes at {wrong:?}", host.len());
    }
    assert!(decompress(gpu, &device) == decompress(gpu, &host), "{what}");
    let x = model_x(host.cols(), 52);
    let products = [&device, &host].map(|weights| matmul(gpu, weights, &x, 1));
    if products.iter().flatten().all(|y| !y.is_nan()) {
        assert_eq!(bits(&products[0]), bits(&products[1]), "{what}");
    }
    device
}

const FORMS: [Option<Resident>; 3] = [None, Some(Resident::Dense3), Some(Resident::Dense4)];

fn packed_on_the_device_as_on_the_host() {
    let shapes = [
        (1, 1),
        (1, 127),
        (3, 128),
        (9, 3),
        (5, 1024),
        (7, 1030),
        (6, 2047),
        (300, 260),
        (2, 16 * 1024),
        (4, 16 * 1024 + 7),
        (3, 33 * 1024 + 900),
    ];
    for (rows, cols) in shapes {
        for (what, weights) in escape_cases(rows, cols, 98) {
            let tensor = encoded_by(&Ans::default(), &weights, rows, cols);
            for form in FORMS {
                let what = format!("{rows}x{cols} {what}");
                let loaded = same_on_the_device(gpu(), &tensor, form, &what);
                assert!(decompress(gpu(), &loaded) == bytes_of(&weights), "{what} {form:?}");
            }
        }
    }
    let every: Vec<u16> = (0..=u16::MAX).collect();
    for (rows, cols) in [(64, 1024), (256, 256), (1, 65_536), (65_536, 1)] {
        let tensor = encoded_by(&Ans::default(), &every, rows, cols);
        for form in FORMS {
            let loaded = same_on_the_device(gpu(), &tensor, form, "every pattern");
            assert!(decompress(gpu(), &loaded) == bytes_of(&every), "{rows}x{cols} {form:?}");
        }
    }
    // The host packs this in two pieces, and the smallest form is a dense one.
    let (rows, cols) = (600, 4100);
    let tensor = encoded_by(&Ans::default(), &model_weights(rows, cols, 99), rows, cols);
    for form in FORMS {
        let loaded = same_on_the_device(gpu(), &tensor, form, "two pieces");
        assert_ne!(loaded.resident(), Resident::Plain);
    }
}

/// Matrices divided into shards, two-dimensional grids, the limits that every WebGPU device has, no
/// loop guards, and cooperative matrices.
fn packed_within_any_limits() {
    let (rows, cols) = (200, 130);
    let mut narrow = model_weights(rows, cols, 100);
    // Zeros are also exact in f16.
    narrow[3] = 0;
    narrow[4] = 0x8000;
    let mut wide = narrow.clone();
    wide[77] = bf16(1e-20);
    let [narrow, wide] = [narrow, wide].map(|w| encoded_by(&Ans::default(), &w, rows, cols));
    let sharded = small_device(|l| l.max_storage_buffer_binding_size = 60_000);
    let folded = small_device(|l| l.max_compute_workgroups_per_dimension = 12);
    let unguarded = Wgpu::headless_with(&options().unguarded_loops(true)).unwrap();
    let core = given_device();
    let halves = with_cooperative(Cooperative::Emulated, None);
    for (gpu, n_shards) in [(&sharded, 2), (&folded, 1), (&unguarded, 1), (&core, 1), (&halves, 1)]
    {
        for tensor in [&narrow, &wide] {
            for form in FORMS.into_iter().chain([Some(Resident::Plain)]) {
                let loaded = same_on_the_device(gpu, tensor, form, "limits");
                assert_eq!(loaded.n_shards(), n_shards);
            }
        }
    }
    // The same matrices are multiplied in f16, or not.
    let x = model_x(40 * cols, 101);
    for form in FORMS.into_iter().chain([Some(Resident::Plain)]) {
        for (tensor, by_halves) in [(&narrow, true), (&wide, false)] {
            let ours = halves.upload_with(tensor, &on_device(form)).unwrap();
            let host = halves.upload_with(tensor, &in_form(form)).unwrap();
            let usual = gpu().upload_with(tensor, &in_form(form)).unwrap();
            let y = bits(&matmul(&halves, &ours, &x, 40));
            assert_eq!(y, bits(&matmul(&halves, &host, &x, 40)), "{form:?}");
            assert_eq!(y != bits(&matmul(gpu(), &usual, &x, 40)), by_halves, "{form:?}");
        }
    }
}

fn what_cannot_be_packed_on_the_device() {
    for (rows, cols) in [(5, 0), (0, 5), (0, 0)] {
        let tensor = encoded_by(&Ans::default(), &[], rows, cols);
        for form in FORMS {
            let loaded = gpu().upload_with(&tensor, &on_device(form)).unwrap();
            assert_eq!((loaded.rows(), loaded.cols(), loaded.byte_len()), (rows, cols, 0));
            assert_eq!(loaded.resident(), form.unwrap_or(Resident::Plain));
        }
    }
    // The host decodes another encoding.
    let raw = encoded(&[1, 2, 3, 4], 2, 2);
    let loaded = gpu().upload_with(&raw, &on_device(None)).unwrap();
    assert!(!loaded.decoded_on_device() && decompress(gpu(), &loaded) == bytes_of(&[1, 2, 3, 4]));
    // One row more than can be decoded at once: the host decodes the matrix in pieces.
    let (rows, cols) = (40, 800);
    let small = small_device(|l| l.max_storage_buffer_binding_size = 63_996);
    let weights = model_weights(rows, cols, 102);
    let tensor = encoded_by(&Ans::default(), &weights, rows, cols);
    let loaded = small.upload_with(&tensor, &on_device(None)).unwrap();
    assert!(!loaded.decoded_on_device() && decompress(&small, &loaded) == bytes_of(&weights));
    let fits = encoded_by(&Ans::default(), &weights[cols..], rows - 1, cols);
    same_on_the_device(&small, &fits, None, "one row less");
    // A row that fits without padding, but not with padding.
    let row = encoded_by(&Ans::default(), &weights[..31_998], 1, 31_998);
    let error = small.upload_with(&row, &on_device(None)).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::TooLarge, Some("w")));
}

/// Matrices of one shape that use the same memory in turn: each is sent while another one is in
/// use, and is decoded to the memory of the one before.
fn ans_decodes_where_another_matrix_was() {
    let (rows, cols) = (90, 1500);
    let originals: Vec<Vec<u16>> = (80..85).map(|seed| model_weights(rows, cols, seed)).collect();
    let prepared: Vec<PreparedAns> = originals
        .iter()
        .map(|w| PreparedAns::new(encoded_by(&Ans::default(), w, rows, cols)).unwrap())
        .collect();
    // Also for a matrix that is divided into shards.
    let small = small_device(|l| l.max_storage_buffer_binding_size = 200 << 10);
    for gpu in [gpu(), &small] {
        let scratch = gpu.new_buffer(rows * cols / 2).unwrap();
        let place = gpu.new_plain("place", rows, cols).unwrap();
        let sent: Result<Vec<_>, _> = prepared.iter().map(|p| gpu.send_ans(p)).collect();
        if scratch.size() > gpu.device().limits().max_storage_buffer_binding_size {
            assert!(place.n_shards() > 1);
            let error =
                gpu.submit(|r| r.decode_ans_to(&sent.unwrap()[0], &scratch, &place)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooLarge);
            continue;
        }
        for ((sent, prepared), original) in sent.unwrap().iter().zip(&prepared).zip(&originals) {
            assert_eq!(sent.byte_len(), prepared.byte_len());
            gpu.submit(|r| r.decode_ans_to(sent, &scratch, &place)).unwrap();
            gpu.check_ans(sent).unwrap();
            assert!(decompress(gpu, &place) == bytes_of(original));
        }
        let other = gpu.new_plain("other", cols, rows + 1).unwrap();
        let sent = gpu.send_ans(&prepared[0]).unwrap();
        let error = gpu.submit(|r| r.decode_ans_to(&sent, &scratch, &other)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
    }
}

/// Flips bits of the payload and recomputes the checksums. The result must be an error of the plan
/// or of the kernel, or the same values as on the CPU: never a crash, and never a different result.
// J-05
fn damaged_ans_is_an_error() {
    let (rows, cols) = (2, 3000);
    let tensor = encoded_by(&Ans::default(), &model_weights(rows, cols, 53), rows, cols);
    let table = tensor.table();
    let lens: Vec<u32> = (0..table.n_blocks()).map(|i| table.block_len(i) as u32).collect();
    let mut random = Random::new(54);
    let (mut refused, mut noticed, mut harmless) = (0, 0, 0);
    for _ in 0..300 {
        let mut payload = tensor.payload().to_vec();
        let at = random.bits() as usize % (8 * payload.len());
        payload[at / 8] ^= 1 << (at % 8);
        let damaged = EncodedTensor::new(
            tensor.spec().clone(),
            tensor.encoding(),
            table.head_len() as u32,
            lens.clone(),
            payload,
        );
        let Ok(damaged) = damaged else { continue };
        let mut expected = vec![0; 2 * rows * cols];
        let on_cpu =
            damaged.decode_bytes(&Ans::default(), 0..(2 * rows * cols) as u64, &mut expected);
        let Err(error) = PreparedAns::new(damaged.clone()) else {
            let (bytes, verdict) = decoded_on_device(&damaged);
            match (verdict, on_cpu) {
                (Ok(()), Ok(())) => {
                    assert!(bytes == expected, "bit {at}");
                    harmless += 1;
                }
                (Err(a), Err(b)) => {
                    assert_eq!(a.class(), b.class(), "bit {at}");
                    let packed = gpu().upload_with(&damaged, &on_device(FORMS[noticed % 3]));
                    assert_eq!(
                        packed.unwrap_err().format().unwrap().rule(),
                        a.format().unwrap().rule(),
                        "bit {at}"
                    );
                    noticed += 1;
                }
                (gpu, cpu) => panic!("bit {at}: GPU {gpu:?}, CPU {cpu:?}"),
            }
            continue;
        };
        assert_eq!(error.class(), Class::Corrupt);
        let cpu = on_cpu.expect_err("the CPU refuses it too");
        assert_eq!(cpu.class(), Class::Corrupt, "bit {at}: {error:?}");
        refused += 1;
    }
    assert!(refused > 0 && noticed > 0 && harmless > 0, "{refused} {noticed} {harmless}");
}

// J-05
fn malformed_tbe_is_never_uploaded() {
    for (name, tensor) in malformed_tbe() {
        let error = gpu().upload(&tensor).map(drop).expect_err(name);
        assert_eq!((error.class(), error.tensor()), (Class::Corrupt, Some("w")), "{name}");
    }
}

/// A block that decodes completely, but leaves two of its words unread.
fn ans_words_left_over_are_an_error() {
    let (rows, cols) = (4, 1500);
    let tensor = encoded_by(&Ans::default(), &model_weights(rows, cols, 55), rows, cols);
    let block = tensor.block(0);
    assert_eq!(block[0], 2, "a coded block");
    let n_words = u32::from_le_bytes(block[4..8].try_into().unwrap());
    let state_bits: usize =
        block[8..24].iter().map(|b| 32 + usize::from(b & 15) + usize::from(b >> 4)).sum();
    let words_at = 24 + state_bits.div_ceil(8).next_multiple_of(4);
    let after = words_at + (2 * n_words as usize).next_multiple_of(4);
    let mut longer = block[..after].to_vec();
    longer[4..8].copy_from_slice(&(n_words.next_multiple_of(2) + 2).to_le_bytes());
    longer.extend([1, 2, 3, 4]);
    longer.extend(&block[after..]);
    let mut payload = tensor.head().to_vec();
    payload.resize(payload.len().next_multiple_of(8), 0);
    let len = longer.len() as u32;
    payload.extend(longer);
    payload.resize(payload.len().next_multiple_of(8), 0);
    let head_len = tensor.head().len() as u32;
    let damaged =
        EncodedTensor::new(tensor.spec().clone(), tensor.encoding(), head_len, vec![len], payload);
    let damaged = damaged.unwrap();
    let (bytes, verdict) = decoded_on_device(&damaged);
    let mut original = vec![0; bytes.len()];
    tensor.decode_bytes(&Ans::default(), 0..bytes.len() as u64, &mut original).unwrap();
    assert!(bytes == original, "all was decoded");
    assert_eq!(verdict.unwrap_err().format().unwrap().rule(), Rule::AnsWords);
    for form in FORMS {
        let error = gpu().upload_with(&damaged, &on_device(form)).unwrap_err();
        assert_eq!(error.format().unwrap().rule(), Rule::AnsWords);
        assert_eq!((error.class(), error.tensor()), (Class::Corrupt, Some("w")));
    }
}

/// The device computes the same as the twin, with one of the two kinds of `fma`, and always the
/// same kind.
fn products_equal_the_twin() {
    let mut possible = [true; 2];
    for &(rows, cols) in SHAPES {
        let weights = model_weights(rows, cols, 16);
        let tensor = encoded(&weights, rows, cols);
        for form in Resident::ALL {
            let loaded = gpu().upload_with(&tensor, &in_form(form)).unwrap();
            for batch in [1, 3, 12, 20] {
                let x = model_x(batch * cols, 17);
                let y = bits(&matmul(gpu(), &loaded, &x, batch));
                let fmas: [fn(f32, f32, f32) -> f32; 2] = [fused, unfused];
                for (possible, fma) in possible.iter_mut().zip(fmas) {
                    let twin = Twin::new(&weights, rows, cols, twin_form(form), fma);
                    let expected: Vec<u32> = x
                        .chunks(cols)
                        .flat_map(|x| {
                            bits(&if batch <= 16 { twin.matvec(x) } else { twin.gemm(x) })
                        })
                        .collect();
                    *possible &= y == expected;
                }
                assert!(possible != [false; 2], "{rows}x{cols} batch {batch} {form:?}");
            }
        }
    }
    eprintln!("this device's fma rounds {}", if possible[0] { "once" } else { "twice" });
}

fn twin_form(form: Resident) -> layout::Resident {
    match form {
        Resident::Dense3 => layout::Resident::Dense3,
        Resident::Dense4 => layout::Resident::Dense4,
        _ => layout::Resident::Plain,
    }
}

fn errors_keep_within_the_bound() {
    let rows = 8;
    for cols in [1000, 4096, 28672] {
        let inputs = [
            ("random", model_weights(rows, cols, 18), model_x(64 * cols, 19)),
            ("constant", vec![bf16(0.1); rows * cols], vec![0.3; 64 * cols]),
            (
                "all positive",
                model_weights(rows, cols, 20).iter().map(|w| w & 0x7fff).collect(),
                model_x(64 * cols, 21).iter().map(|x| x.abs()).collect(),
            ),
        ];
        for (what, weights, x) in inputs {
            let loaded = gpu().upload(&encoded(&weights, rows, cols)).unwrap();
            for batch in [1, 2, 3, 4, 7, 8, 9, 16, 31, 32, 48, 64] {
                let x = &x[..batch * cols];
                let y = matmul(gpu(), &loaded, x, batch);
                let error = largest_error(&weights, cols, x, &y);
                let bound = bound(cols, batch);
                assert!(error <= bound, "{what} {cols} batch {batch}: {error} of {bound}");
                if what == "random" {
                    assert!(error <= 16.0, "{cols} batch {batch}: {error}");
                }
            }
        }
    }
}

fn tbe_uploads_directly() {
    let (rows, cols) = (300, 1100);
    let weights = model_weights(rows, cols, 22);
    for width in [Width::Three, Width::Four] {
        let tensor = encoded_by(&Tbe::new(width), &weights, rows, cols);
        let loaded = gpu().upload(&tensor).unwrap();
        assert!(decompress(gpu(), &loaded) == bytes_of(&weights));
    }
}

fn the_smallest_form_is_chosen() {
    let (rows, cols) = (64, 4096);
    let model = gpu().upload(&encoded(&model_weights(rows, cols, 23), rows, cols)).unwrap();
    assert_eq!(model.resident(), Resident::Dense3);
    let bits_per_weight = model.byte_len() as f64 * 8.0 / (rows * cols) as f64;
    assert!((11.1..11.6).contains(&bits_per_weight), "{bits_per_weight}");
    let noise = any_bits(rows * cols, 24, false);
    let noise = gpu().upload(&encoded(&noise, rows, cols)).unwrap();
    assert_eq!(noise.resident(), Resident::Plain);
}

// J-06
fn nothing_to_multiply_is_no_error() {
    for (rows, cols, batch) in [(5, 0, 3), (0, 5, 3), (0, 0, 1), (5, 4, 0)] {
        let weights = gpu().upload(&encoded(&vec![0; rows * cols], rows, cols)).unwrap();
        let y = matmul(gpu(), &weights, &vec![1.0; batch * cols], batch);
        assert!(y.iter().all(|&v| v == 0.0) && y.len() == batch * rows);
        assert!(decompress(gpu(), &weights).is_empty() || cols == 4);
        // The same with buffers whose old contents are not zero.
        let x = gpu().new_buffer(batch * cols).unwrap();
        let y = gpu().new_buffer(batch * rows).unwrap();
        gpu().write_buffer(&y, &vec![1f32; batch * rows]).unwrap();
        gpu().submit(|r| r.matmul(&weights, &x, batch, &y)).unwrap();
        let mut read = vec![f32::NAN; batch * rows];
        gpu().read_buffer(&y, &mut read).unwrap();
        assert!(read.iter().all(|&v| v == 0.0));
    }
}

// J-07
fn wrong_lengths_are_errors() {
    let (rows, cols) = (8, 100);
    let weights = gpu().upload(&encoded(&model_weights(rows, cols, 25), rows, cols)).unwrap();
    let is_wrong = |x: usize, batch: usize, y: usize| {
        let error = gpu().matmul(&weights, &vec![0.0; x], batch, &mut vec![0.0; y]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BufferLength, "{x} {batch} {y}");
    };
    is_wrong(99, 1, 8);
    is_wrong(101, 1, 8);
    is_wrong(100, 1, 7);
    is_wrong(100, 2, 16);
    is_wrong(200, 2, 8);
    is_wrong(0, 1, 0);
    is_wrong(0, usize::MAX, 0);
    for len in [0, 1, 2 * rows * cols - 1, 2 * rows * cols + 1] {
        let error = gpu().decompress(&weights, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BufferLength);
    }
    let (x, y) = (gpu().new_buffer(99).unwrap(), gpu().new_buffer(8).unwrap());
    let error = gpu().submit(|r| r.matmul(&weights, &x, 1, &y)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BufferLength);
    let error = gpu().submit(|r| r.decompress(&weights, &y)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BufferLength);
    let error = gpu().gather(&weights, &[8], &mut [0.0; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RowOutOfRange);
    // A dtype other than bf16.
    let spec = bigsmall_format::TensorSpec::new("w", bigsmall_format::Dtype::F32, &[2]).unwrap();
    let tensor = bigsmall_format::encode_tensor(&bigsmall_format::Raw, &spec, &vec![0; 8]);
    assert_eq!(gpu().upload(&tensor.unwrap()).unwrap_err().kind(), ErrorKind::Mismatch);
}

/// A device with a separate instance of wgpu, as a caller may create one.
fn given_device() -> Wgpu {
    let instance = wgpu::Instance::default();
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default())).unwrap();
    Wgpu::from_device(device, queue)
}

/// Two instances of wgpu use the same numbers for their buffers, so wgpu could mistake one buffer
/// for another.
fn tensors_of_another_device_are_errors() {
    let (rows, cols) = (16, 128);
    let [ours, theirs] = [110, 111].map(|seed| {
        let gpu = given_device();
        let weights = model_weights(rows, cols, seed);
        let ans = encoded_by(&Ans::default(), &weights, rows, cols);
        let plain = gpu.new_plain("w", rows, cols).unwrap();
        (
            gpu.upload(&ans).unwrap(),
            gpu.send_ans(&PreparedAns::new(ans.clone()).unwrap()).unwrap(),
            plain,
            gpu,
        )
    });
    let (weights, ans, plain, _) = &theirs;
    let gpu = &ours.3;
    let (x, y) = (gpu.new_buffer(cols).unwrap(), gpu.new_buffer(rows * cols).unwrap());
    let (mut out, mut row) = (vec![0.0; rows], vec![0.0; cols]);
    let found = [
        gpu.matmul(weights, &vec![1.0; cols], 1, &mut out),
        gpu.submit(|r| r.matmul(weights, &x, 1, &y)),
        gpu.gather(weights, &[3], &mut row),
        gpu.submit(|r| r.gather(weights, &x, 1, &y)),
        gpu.decompress(weights, &mut vec![0; 2 * rows * cols]),
        gpu.submit(|r| r.decompress(weights, &y)),
        gpu.tune(weights, 1).map(drop),
        gpu.submit(|r| r.decode_ans(ans, &y)),
        gpu.submit(|r| r.decode_ans_to(ans, &y, &ours.2)),
        gpu.submit(|r| r.decode_ans_to(&ours.1, &y, plain)),
        gpu.check_ans(ans),
    ];
    for (i, result) in found.into_iter().enumerate() {
        let error = result.expect_err(&format!("call {i}"));
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::WrongDevice, Some("w")), "call {i}");
    }
    // The weights of this device still work.
    gpu.submit(|r| r.decode_ans_to(&ours.1, &y, &ours.2)).unwrap();
    assert!(decompress(gpu, &ours.2) == decompress(gpu, &ours.0));
}

/// Devices that this crate creates share one instance, so wgpu can tell their buffers apart.
fn buffers_of_another_device_are_errors() {
    let (rows, cols) = (16, 128);
    let [ours, theirs] = [(); 2].map(|()| new_device());
    let tensor = encoded(&model_weights(rows, cols, 112), rows, cols);
    let weights = ours.upload(&tensor).unwrap();
    let y = ours.new_buffer(rows).unwrap();
    for gpu in [&ours, &theirs] {
        let x = gpu.new_buffer(cols).unwrap();
        let done = ours.submit(|r| r.matmul(&weights, &x, 1, &y));
        assert_eq!(
            done.map_err(|e| e.kind()).err(),
            std::ptr::eq(gpu, &theirs).then_some(ErrorKind::Device)
        );
        let read = ours.read_buffer(&x, &mut vec![0f32; cols]);
        assert_eq!(
            read.map_err(|e| e.kind()).err(),
            std::ptr::eq(gpu, &theirs).then_some(ErrorKind::Device)
        );
    }
}

// J-02
fn rows_split_by_the_limits() {
    let (rows, cols) = (150, 1100);
    let weights = model_weights(rows, cols, 26);
    let tensor = encoded(&weights, rows, cols);
    let small = small_device(|l| l.max_storage_buffer_binding_size = 64 << 10);
    for form in Resident::ALL {
        let whole = gpu().upload_with(&tensor, &in_form(form)).unwrap();
        let split = small.upload_with(&tensor, &in_form(form)).unwrap();
        assert_eq!(whole.n_shards(), 1);
        assert!(split.n_shards() >= 5, "{split:?}");
        assert!(decompress(&small, &split) == bytes_of(&weights));
        for batch in [1, 6, 9, 40] {
            let x = model_x(batch * cols, 27);
            let expected = matmul(gpu(), &whole, &x, batch);
            // A batch that does not fit in a buffer is multiplied in pieces. Each piece uses the
            // kernel for its size.
            let y = matmul(&small, &split, &x, batch);
            if batch <= 9 {
                assert_eq!(bits(&y), bits(&expected));
            }
            assert!(largest_error(&weights, cols, &x, &y) <= 64.0);
        }
        let ids = [149, 0, 77, 77];
        let mut gathered = vec![0.0; ids.len() * cols];
        small.gather(&split, &ids, &mut gathered).unwrap();
        for (id, row) in ids.iter().zip(gathered.chunks(cols)) {
            let expected = &weights[*id as usize * cols..][..cols];
            assert!(row.iter().zip(expected).all(|(v, w)| v.to_bits() == u32::from(*w) << 16));
        }
        // A buffer that is too large to be bound is an error, not a panic.
        let y = small.new_buffer(rows * 200).unwrap();
        let x = small.new_buffer(cols * 200).unwrap();
        let error = small.submit(|r| r.matmul(&split, &x, 1, &y)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }
    // A single row does not fit.
    let wide = encoded(&model_weights(1, 40_000, 28), 1, 40_000);
    assert_eq!(small.upload(&wide).unwrap_err().kind(), ErrorKind::TooLarge);
}

// J-08
fn more_workgroups_than_a_dimension_holds() {
    // A workgroup has eight rows, so 600,000 rows need 75,000 workgroups.
    let (rows, cols) = (600_000, 1);
    let weights = any_bits(rows, 29, true);
    let tensor = encoded(&weights, rows, cols);
    let loaded = gpu().upload_with(&tensor, &in_form(Resident::Dense3)).unwrap();
    let y = matmul(gpu(), &loaded, &[1.0], 1);
    let exact = |y: &f32, w: &u16| *y == half::bf16::from_bits(*w).to_f32();
    // Denormals may be flushed.
    let flushed = |y: &f32, w: &u16| *y == 0.0 && w & 0x7f80 == 0;
    assert!(y.iter().zip(&weights).all(|(y, w)| exact(y, w) || flushed(y, w)));
    // The same for every kernel, with a lower limit.
    let (rows, cols) = (1000, 40);
    let weights = model_weights(rows, cols, 30);
    let tensor = encoded(&weights, rows, cols);
    let small = small_device(|l| l.max_compute_workgroups_per_dimension = 12);
    for form in Resident::ALL {
        let (a, b) = (
            gpu().upload_with(&tensor, &in_form(form)),
            small.upload_with(&tensor, &in_form(form)),
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        assert!(decompress(&small, &b) == bytes_of(&weights));
        for batch in [1, 8, 33] {
            let x = model_x(batch * cols, 31);
            assert_eq!(bits(&matmul(gpu(), &a, &x, batch)), bits(&matmul(&small, &b, &x, batch)));
        }
    }
}

fn rows_are_gathered() {
    for &(rows, cols) in SHAPES {
        let weights = any_bits(rows * cols, 32, false);
        let tensor = encoded(&weights, rows, cols);
        let ids: Vec<u32> = (0..20).map(|i| (i * 7919) % rows as u32).collect();
        for form in Resident::ALL {
            let loaded = gpu().upload_with(&tensor, &in_form(form)).unwrap();
            let mut y = vec![f32::NAN; ids.len() * cols];
            gpu().gather(&loaded, &ids, &mut y).unwrap();
            for (id, row) in ids.iter().zip(y.chunks(cols)) {
                let expected = &weights[*id as usize * cols..][..cols];
                let same = |v: &f32, w: &u16| {
                    let w = half::bf16::from_bits(*w).to_f32();
                    v.to_bits() == w.to_bits() || (v.is_nan() && w.is_nan())
                };
                assert!(
                    row.iter().zip(expected).all(|(v, w)| same(v, w)),
                    "{rows}x{cols} {form:?}"
                );
            }
        }
    }
}

fn layers_chain_on_the_device() {
    let (m, k, batch) = (130, 70, 3);
    let up_weights = model_weights(m, k, 33);
    let up = gpu().upload(&encoded(&up_weights, m, k)).unwrap();
    let down = gpu().upload(&encoded(&model_weights(k, m, 34), k, m)).unwrap();
    let x = model_x(batch * k, 35);
    let middle = matmul(gpu(), &up, &x, batch);
    let expected = matmul(gpu(), &down, &middle, batch);
    let (a, b, c) = (
        gpu().new_buffer(batch * k).unwrap(),
        gpu().new_buffer(batch * m).unwrap(),
        gpu().new_buffer(batch * k).unwrap(),
    );
    gpu().write_buffer(&a, &x).unwrap();
    let decoded = gpu().new_buffer(m * k / 2).unwrap();
    gpu()
        .submit(|r| {
            r.matmul(&up, &a, batch, &b)?;
            r.matmul(&down, &b, batch, &c)?;
            r.decompress(&up, &decoded)
        })
        .unwrap();
    let mut y = vec![0.0; batch * k];
    gpu().read_buffer(&c, &mut y).unwrap();
    assert_eq!(bits(&y), bits(&expected));
    let mut bytes = vec![0u8; 2 * m * k];
    gpu().read_buffer(&decoded, &mut bytes).unwrap();
    assert!(bytes == bytes_of(&up_weights));
}

/// Commands that were recorded before, a result that is read back, and work during the wait.
fn a_step_is_one_submission() {
    // Doubles x.
    let double = gpu().upload(&encoded(&[bf16(2.0), 0, 0, bf16(2.0)], 2, 2)).unwrap();
    let (x, y) = (buffer(gpu(), &[1.0, 3.0, 5.0]), gpu().new_buffer(2).unwrap());
    let step = || {
        gpu().record(|r| {
            r.matmul(&double, &x, 1, &y)?;
            r.encoder().copy_buffer_to_buffer(&y, 0, &x, 0, 8);
            Ok(())
        })
    };
    let mut commands = step().unwrap();
    for factor in [2.0, 4.0, 8.0] {
        let mut found = [0f32; 2];
        commands = gpu().submit_and_read(commands, &x, &mut found, step).unwrap();
        assert_eq!(found, [factor, 3.0 * factor]);
    }
    let error = gpu().submit_and_read(commands, &x, &mut [0f32; 5], || Ok(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BufferLength);
    let failing = || Err::<(), _>(bigsmall_gpu::Error::from(FormatError::new(Rule::BufferLength)));
    let error = gpu().submit_and_read(step().unwrap(), &x, &mut [0f32], failing).unwrap_err();
    assert_eq!(error.format().unwrap().rule(), Rule::BufferLength);
    gpu().submit_and_read(step().unwrap(), &x, &mut [0f32; 0], || Ok(())).unwrap();
}

/// Bind groups are kept from one recording to the next, but not the memory of weights that were
/// dropped, nor that of other buffers when memory is taken.
fn what_is_dropped_is_free() {
    let gpu = new_device();
    let allocated = || {
        gpu.wait().unwrap();
        gpu.device()
            .generate_allocator_report()
            .map(|r| r.allocations.iter().map(|a| a.size).sum::<u64>())
    };
    if allocated().is_none() {
        return println!("no report of memory");
    }
    let n = 1 << 20;
    let weights = gpu.upload(&encoded(&model_weights(1, n, 90), 1, n)).unwrap();
    let (x, y) = (gpu.new_buffer(n).unwrap(), gpu.new_buffer(1).unwrap());
    for _ in 0..2 {
        gpu.submit(|r| r.matmul(&weights, &x, 1, &y)).unwrap();
    }
    let held = allocated().unwrap();
    let bytes = weights.byte_len();
    drop(weights);
    assert!(allocated().unwrap() + bytes <= held);
    let other = gpu.upload(&encoded(&model_weights(1, n, 91), 1, n)).unwrap();
    gpu.submit(|r| r.matmul(&other, &x, 1, &y)).unwrap();
    let held = allocated().unwrap();
    drop(x);
    let _small = gpu.new_buffer(1).unwrap();
    assert!(allocated().unwrap() + 4 * n as u64 <= held + 1024);
}

fn commands_go_into_an_encoder_of_the_caller() {
    let (rows, cols) = (9, 130);
    let weights = gpu().upload(&encoded(&model_weights(rows, cols, 113), rows, cols)).unwrap();
    let values = model_x(cols, 114);
    let (x, y) = (buffer(gpu(), &values), gpu().new_buffer(rows).unwrap());
    let mut encoder = gpu().device().create_command_encoder(&Default::default());
    gpu().record_into(&mut encoder, |r| r.matmul(&weights, &x, 1, &y)).unwrap();
    gpu().queue().submit([encoder.finish()]);
    assert_eq!(bits(&read(gpu(), &y, rows)), bits(&matmul(gpu(), &weights, &values, 1)));
}

/// A waiting thread may receive the completion for which another thread waits.
fn threads_share_a_device() {
    let (rows, cols) = (16, 128);
    let weights = gpu().upload(&encoded(&model_weights(rows, cols, 60), rows, cols)).unwrap();
    let expected: Vec<Vec<u32>> =
        (0..16).map(|t| bits(&matmul(gpu(), &weights, &model_x(cols, t), 1))).collect();
    std::thread::scope(|scope| {
        for (t, expected) in expected.iter().enumerate() {
            let weights = &weights;
            scope.spawn(move || {
                let x = model_x(cols, t as u64);
                for _ in 0..300 {
                    assert_eq!(&bits(&matmul(gpu(), weights, &x, 1)), expected);
                }
            });
        }
    });
}

// J-03
fn a_lost_device_is_an_error() {
    let (rows, cols) = (8, 64);
    let tensor = encoded(&model_weights(rows, cols, 36), rows, cols);
    let ans = encoded_by(&Ans::default(), &model_weights(rows, cols, 36), rows, cols);
    let own = new_device();
    // A device that the caller created: this crate is not notified of its loss.
    let given = given_device();
    for gpu in [own, given] {
        let weights = gpu.upload(&tensor).unwrap();
        let x = vec![1.0; cols];
        let before = matmul(&gpu, &weights, &x, 1);
        assert_eq!(before.len(), rows);
        gpu.device().destroy();
        let mut y = vec![0.0; rows];
        let error = gpu.matmul(&weights, &x, 1, &mut y).unwrap_err();
        assert_eq!(error.class(), Class::Io, "{error:?}");
        assert_eq!(error.kind(), ErrorKind::DeviceLost);
        assert_eq!(gpu.upload(&tensor).unwrap_err().kind(), ErrorKind::DeviceLost);
        assert_eq!(
            gpu.upload_with(&ans, &on_device(None)).unwrap_err().kind(),
            ErrorKind::DeviceLost
        );
        let error = gpu.decompress(&weights, &mut vec![0; 2 * rows * cols]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeviceLost);
    }
}

// J-01
fn no_adapter_is_an_error() {
    let missing = options().adapter("an adapter that does not exist".to_owned());
    let error = Wgpu::headless_with(&missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoAdapter);
    // The adapters that exist.
    let shared = gpu().device().adapter_info();
    assert!(error.to_string().contains(&shared.name), "{error}");
}

/// On every machine: a driver on the CPU is used only if it is allowed.
// J-01
fn a_driver_on_the_cpu_is_refused_unless_asked_for() {
    match Wgpu::headless() {
        Ok(gpu) => {
            assert_ne!(gpu.device().adapter_info().device_type, wgpu::DeviceType::Cpu);
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NoAdapter);
            let shared = gpu().device().adapter_info();
            assert_eq!(shared.device_type, wgpu::DeviceType::Cpu);
            let text = error.to_string();
            assert!(text.contains(&shared.name) && text.contains("allow_software"), "{text}");
        }
    }
}

/// Runs in a separate process with limited memory: lavapipe allocates buffers in the memory of the
/// process.
// J-04
fn no_memory_is_an_error() {
    if !cfg!(unix) || !gpu().description().to_lowercase().contains("llvmpipe") {
        eprintln!("no_memory_is_an_error: only lavapipe's memory can be limited from here");
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let done = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 4000000; exec \"$0\" --exact no_memory_is_an_error --nocapture"])
        .arg(exe)
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("OutOfMemory [Limit]"), "{said}");
}

const CHILD: &str = "BIGSMALL_TEST_NO_MEMORY";

fn fill_the_memory() {
    let gpu = new_device();
    let mut held = Vec::new();
    for _ in 0..8 {
        match gpu.new_buffer(200_000_000) {
            Ok(buffer) => held.push(buffer),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error:?}");
                println!("{error:?}");
                // A smaller matrix still works.
                drop(held);
                let weights = gpu.upload(&encoded(&model_weights(8, 64, 37), 8, 64)).unwrap();
                matmul(&gpu, &weights, &[1.0; 64], 1);
                return;
            }
        }
    }
    panic!("6 GB fit into 4 GB");
}

fn unguarded_loops_change_nothing() {
    let (rows, cols) = (50, 3000);
    let tensor = encoded(&model_weights(rows, cols, 38), rows, cols);
    let fast = Wgpu::headless_with(&options().unguarded_loops(true)).unwrap();
    let (a, b) = (gpu().upload(&tensor).unwrap(), fast.upload(&tensor).unwrap());
    for batch in [1, 2, 4, 8, 16, 64] {
        let x = model_x(batch * cols, 39);
        assert_eq!(bits(&matmul(gpu(), &a, &x, batch)), bits(&matmul(&fast, &b, &x, batch)));
    }
}

fn with_cooperative(cooperative: Cooperative, limits: Option<wgpu::Limits>) -> Wgpu {
    let options = options().cooperative(cooperative).limits(limits);
    Wgpu::headless_with(&options).unwrap()
}

/// Everything around cooperative matrices; the matrices themselves are emulated.
fn cooperative_products_equal_the_twin() {
    let gpu = with_cooperative(Cooperative::Emulated, None);
    assert!(gpu.cooperative(), "this device has no values of 16 bits");
    let mut possible = [true; 2];
    for (rows, cols) in [(1, 1), (65, 9), (33, 127), (9, 1025), (2, 2816), (3, 16 * 1024 + 3)] {
        let weights = model_weights(rows, cols, 90);
        let offset = layout::Binades::NONE.and(&weights).half_offset().unwrap();
        let tensor = encoded(&weights, rows, cols);
        for (form, batch) in Resident::ALL.into_iter().zip([33, 70, 64]) {
            // The emulation is slow.
            if cols > 10_000 && form != Resident::Dense4 {
                continue;
            }
            let loaded = gpu.upload_with(&tensor, &in_form(form)).unwrap();
            let mut x = model_x(batch * cols, 91);
            // Columns of very different magnitudes, and one of zeros.
            for (column, x) in x.chunks_mut(cols).enumerate() {
                let factor = [1.0, 1e-30, 1e20, 0.0][column % 4];
                x.iter_mut().for_each(|x| *x *= factor);
            }
            let y = matmul(&gpu, &loaded, &x, batch);
            let fmas: [fn(f32, f32, f32) -> f32; 2] = [fused, unfused];
            for (possible, fma) in possible.iter_mut().zip(fmas) {
                let twin = Twin::new(&weights, rows, cols, twin_form(form), fma);
                let column = |x| bits(&twin.cooperative(x, offset));
                *possible =
                    *possible && bits(&y) == x.chunks(cols).flat_map(column).collect::<Vec<_>>();
            }
            assert!(possible != [false; 2], "{rows}x{cols} batch {batch} {form:?}");
            assert!(largest_error(&weights, cols, &x, &y) <= cooperative_bound(cols));
        }
    }
    // Compressed and plain weights, both variants.
    let (rows, cols, batch) = (40, 1100, 40);
    let tensor = encoded(&model_weights(rows, cols, 92), rows, cols);
    let (x, y) = (buffer(&gpu, &model_x(batch * cols, 93)), gpu.new_buffer(batch * rows).unwrap());
    let mut expected = None;
    for form in Resident::ALL {
        let loaded = gpu.upload_with(&tensor, &in_form(form)).unwrap();
        for variant in [Variant::Fused, Variant::DecodeFirst] {
            gpu.submit(|r| r.matmul_by(&loaded, &x, batch, &y, variant)).unwrap();
            let found = bits(&read(&gpu, &y, batch * rows));
            assert_eq!(&found, expected.get_or_insert(found.clone()), "{form:?} {variant:?}");
        }
    }
}

/// The usual kernels are used for weights that are not exact in f16, for small batches, for an x
/// that is too large for a buffer in f16, and on a device without cooperative matrices.
fn cooperative_matrices_are_left_where_they_do_not_suit() {
    let own = with_cooperative(Cooperative::Emulated, None);
    assert!(own.cooperative() && !gpu().cooperative());
    let (rows, cols) = (40, 600);
    let narrow = model_weights(rows, cols, 94);
    let mut wide = narrow.clone();
    wide[77] = bf16(1e-20);
    let x = model_x(40 * cols, 95);
    let same = |gpu_b: &Wgpu, weights: &[u16], batch: usize| {
        let tensor = encoded(weights, rows, cols);
        let (a, b) = (gpu().upload(&tensor).unwrap(), gpu_b.upload(&tensor).unwrap());
        let x = &x[..batch * cols];
        bits(&matmul(gpu(), &a, x, batch)) == bits(&matmul(gpu_b, &b, x, batch))
    };
    assert!(!same(&own, &narrow, 33));
    assert!(same(&own, &narrow, 32));
    assert!(same(&own, &wide, 33));
    // 64 columns of 640 values, two f16 each.
    let limit = |bytes: u64| {
        let mut limits = gpu().device().limits();
        limits.max_storage_buffer_binding_size = bytes;
        with_cooperative(Cooperative::Emulated, Some(limits))
    };
    assert!(!same(&limit(64 * 640 * 4), &narrow, 33));
    assert!(same(&limit(64 * 640 * 4 - 4), &narrow, 33));
    // This device may have them or not.
    let offered = with_cooperative(Cooperative::Offered, None);
    eprintln!("cooperative matrices on this device: {}", offered.cooperative());
    assert_eq!(same(&offered, &narrow, 33), !offered.cooperative());
}
