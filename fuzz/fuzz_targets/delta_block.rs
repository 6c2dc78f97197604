#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bigsmall_testing::targets::delta_block(data));
