#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bigsmall_fuzz::structured_shard(data));
