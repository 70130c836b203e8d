use aya::{EbpfLoader, programs::Xdp, VerifierLogLevel};
#[test]
fn loads() {
    let object = std::fs::read("../target/ebpf/balancer.o").unwrap();
    let mut e = EbpfLoader::new().map_max_entries("flows", 1024).verifier_log_level(VerifierLogLevel::STATS).load(&object).unwrap();
    for (n, m) in e.maps() { println!("{n}"); let _ = m; }
    for n in ["pass", "balance"] {
        let p: &mut Xdp = e.program_mut(n).unwrap().try_into().unwrap();
        if let Err(e) = p.load() { println!("{n}: {e}"); panic!(); }
        let i = p.info().unwrap();
        println!("{n}: {:?} {:?} {:?}", i.verified_instruction_count(), i.size_jitted(), i.size_translated());
    }
}
