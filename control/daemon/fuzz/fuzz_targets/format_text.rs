#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| culvert_daemon_fuzz::format_text(data));
