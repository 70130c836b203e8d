//! Mutated bytes for every decoder: whatever comes in, none may panic, hang, overflow its stack or eat the memory.
//!
//! Input number `n` depends on the seed, on `n` and on the corpus alone, so a find is repeated from three numbers. The
//! target runs in a process of its own that keeps `n` in a file: when it dies, however it dies, the parent makes the
//! same input again and saves it.
//!
//! To add a decoder: a function and a line in [`targets`], and a folder of good inputs in `corpus/`.

use std::{
    env, fs,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Parser;
use nix::sys::resource::{Resource, setrlimit};

mod mutate;
mod targets;

use targets::{TARGETS, Target};

/// The longest time that one input may take. The slowest decoder takes microseconds; the machine may be busy.
const HANG: Duration = Duration::from_secs(10);
/// The memory that a target may use in all. No input is larger than 64 KiB.
const MEMORY: u64 = 2 << 30;
/// The stack that a decoder finds on a runtime's threads, which deep nesting must not exhaust.
const STACK: usize = 2 << 20;

/// Throws mutated bytes at every decoder, or at one.
#[derive(Parser)]
struct Arguments {
    /// One target instead of all.
    target: Option<String>,
    /// Runs the target on this file alone: a saved find, or any other.
    file: Option<PathBuf>,
    /// How long each target runs.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Repeats the run that printed this number.
    #[arg(long)]
    seed: Option<u64>,
    /// Only says which targets there are.
    #[arg(long)]
    list: bool,
    /// Internal: be the process that the target runs in, and keep the input's number in this file.
    #[arg(long, hide = true)]
    position: Option<PathBuf>,
}

fn main() -> ExitCode {
    match obey(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.list {
        for target in TARGETS {
            println!("{:<10} {}", target.name, target.about);
        }
        return Ok(());
    }
    let targets: Vec<&Target> = match &arguments.target {
        None => TARGETS.iter().collect(),
        Some(name) => match TARGETS.iter().find(|target| target.name == name) {
            Some(target) => vec![target],
            None => bail!("there is no target {name}; --list names them"),
        },
    };
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let seconds = Duration::from_secs(arguments.seconds);
    if let Some(file) = &arguments.file {
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        targets.iter().for_each(|target| (target.run)(&bytes));
        println!("{} bytes, nothing found.", bytes.len());
        return Ok(());
    }
    if let Some(position) = &arguments.position {
        return targets.into_iter().try_for_each(|target| work(target, seed, seconds, position));
    }
    let mut finds = 0;
    for target in targets {
        finds += usize::from(watch(target, seed, seconds)?);
    }
    if finds > 0 {
        bail!("{finds} targets failed");
    }
    Ok(())
}

/// Runs the target in a process of its own. Whether something was found.
fn watch(target: &Target, seed: u64, seconds: Duration) -> anyhow::Result<bool> {
    let dir = finds_dir()?;
    let position = dir.join(format!("{}.position", target.name));
    fs::write(&position, [0; 8]).with_context(|| format!("writing {}", position.display()))?;
    let mut child = Command::new(env::current_exe().context("looking up this program")?)
        .args([target.name, "--seed", &seed.to_string(), "--seconds", &seconds.as_secs().to_string(), "--position"])
        .arg(&position)
        .spawn()
        .context("starting the process that the target runs in")?;

    let mut last = (0, Instant::now());
    let failure = loop {
        if let Some(status) = child.try_wait().context("waiting for the target")? {
            break (!status.success()).then(|| status.to_string());
        }
        let number = read_position(&position)?;
        if number != last.0 {
            last = (number, Instant::now());
        } else if last.1.elapsed() > HANG {
            child.kill().and_then(|()| child.wait()).context("stopping the target")?;
            break Some(format!("one input took more than {} s", HANG.as_secs()));
        }
        thread::sleep(Duration::from_millis(50));
    };
    let number = read_position(&position)?;
    let Some(failure) = failure else {
        println!("{:<10} {number:>9} inputs, seed {seed}: nothing found", target.name);
        return Ok(false);
    };
    let corpus = target.corpus()?;
    let find = dir.join(format!("{}-{seed}-{number}", target.name));
    fs::write(&find, mutate::input(&corpus, target.words, seed, number))
        .with_context(|| format!("saving {}", find.display()))?;
    println!("{:<10} input {number}, seed {seed}: {failure}", target.name);
    println!("{:<10} repeat it with: cargo xtask fuzz {} {}", "", target.name, find.display());
    Ok(true)
}

/// Gives the target one input after the other until the time is over.
fn work(target: &'static Target, seed: u64, seconds: Duration, position: &Path) -> anyhow::Result<()> {
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY).context("limiting the memory")?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("asking for no core file")?;
    let corpus = target.corpus()?;
    let position = File::options().write(true).open(position).context("opening the position")?;
    let work = move || {
        let end = Instant::now() + seconds;
        let mut number = 0;
        // The good inputs are run as they are, however short the time.
        while number < corpus.len() as u64 || Instant::now() < end {
            position.write_at(&u64::to_le_bytes(number), 0).expect("a file that was just opened can be written");
            (target.run)(&mutate::input(&corpus, target.words, seed, number));
            number += 1;
        }
    };
    let thread = thread::Builder::new().name(target.name.to_owned()).stack_size(STACK).spawn(work);
    match thread.context("starting a thread")?.join() {
        Ok(()) => Ok(()),
        Err(_) => bail!("{} panicked", target.name),
    }
}

fn read_position(path: &Path) -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.read_exact_at(&mut bytes, 0).with_context(|| format!("reading {}", path.display()))?;
    Ok(u64::from_le_bytes(bytes))
}

/// `fuzz/` below cargo's target folder, which this program lies in.
fn finds_dir() -> anyhow::Result<PathBuf> {
    let program = env::current_exe().context("looking up this program")?;
    let target = program.ancestors().nth(2).context("this program lies in no target folder")?;
    let dir = target.join("fuzz");
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So that `cargo test` alone finds a decoder that was broken coarsely, and a find that was put in the corpus.
    #[test]
    fn every_target_bears_its_corpus_and_a_thousand_mutants() {
        for target in TARGETS {
            let corpus = target.corpus().unwrap();
            for number in 0..corpus.len() as u64 + 1_000 {
                (target.run)(&mutate::input(&corpus, target.words, 1, number));
            }
        }
    }

    #[test]
    fn every_target_has_a_name_of_its_own() {
        for (at, target) in TARGETS.iter().enumerate() {
            assert!(TARGETS[..at].iter().all(|earlier| earlier.name != target.name), "{} twice", target.name);
        }
    }
}
