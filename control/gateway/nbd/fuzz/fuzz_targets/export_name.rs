#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| culvert_nbd_fuzz::export_name(data));
