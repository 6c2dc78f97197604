#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bigsmall_fuzz::safetensors_header(data));
