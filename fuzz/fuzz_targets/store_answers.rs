#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bigsmall_testing::outside::store_answers(data));
