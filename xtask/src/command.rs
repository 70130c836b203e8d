//! Running programs: what is run is printed first, and a failure says what was run.

use std::{
    env,
    ffi::OsStr,
    fmt,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitStatus},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// How long the output may stay open after the program has ended, held by a process that it left behind.
const LEFTOVER: Duration = Duration::from_secs(10);

/// `cargo` of the toolchain that built this, with the arguments in words.
pub(crate) fn cargo(words: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words.split_whitespace());
    command
}

/// Runs to the end; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    say(command);
    let status = command.status().with_context(|| format!("starting `{}`", Line(command)))?;
    judge(command, status)
}

/// Becomes the program: signals and the terminal are its own. Returns only if it could not be started.
pub(crate) fn become_program(command: &mut Command) -> anyhow::Error {
    say(command);
    let error = command.exec();
    anyhow::Error::new(error).context(format!("starting `{}`", Line(command)))
}

/// Like [`run`], and hands each line of the output (both streams, in order) to `see` after printing it.
pub(crate) fn run_watched(mut command: Command, mut see: impl FnMut(&str)) -> anyhow::Result<()> {
    say(&command);
    let line = Line(&command).to_string();
    let (reader, writer) = io::pipe().context("making a pipe")?;
    command.stdout(writer.try_clone().context("sharing a pipe")?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("starting `{line}`"))?;
    // The command holds the pipe's writing ends: without this the end of the output is never seen.
    drop(command);

    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        // Bytes rather than text: a test may print what is not UTF-8.
        for bytes in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&bytes).into_owned()).is_err() {
                return;
            }
        }
    });

    let mut ended: Option<Instant> = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(text) => {
                let mut out = io::stdout().lock();
                writeln!(out, "{text}").and_then(|()| out.flush()).context("printing")?;
                see(&text);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => match ended {
                None => ended = child.try_wait().context("waiting")?.map(|_| Instant::now()),
                Some(at) if at.elapsed() > LEFTOVER => {
                    bail!("`{line}` has ended but a process that it started is still there and holds its output")
                }
                Some(_) => {}
            },
        }
    }
    let status = child.wait().with_context(|| format!("waiting for `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Whether a program of this name can be found. Debian keeps some in /usr/sbin, which is not in every user's PATH.
pub(crate) fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(Into::into)).any(|dir| dir.join(program).is_file())
}

/// Whether a program that adds a verb to cargo is installed: beside cargo's proxy or anywhere in PATH.
pub(crate) fn cargo_tool(program: &str) -> bool {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.is_some_and(|home| home.join("bin").join(program).is_file()) || on_path(program)
}

pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn say(command: &Command) {
    println!("\n$ {}", Line(command));
    // What the program prints must not overtake the line.
    let _ = io::stdout().flush();
}

fn judge(command: &Command, status: ExitStatus) -> anyhow::Result<()> {
    if !status.success() {
        bail!("`{}` failed: {status}", Line(command));
    }
    Ok(())
}

/// A command as it would be typed.
struct Line<'a>(&'a Command);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.0.get_envs() {
            if let Some(value) = value {
                write!(f, "{}={} ", name.display(), quoted(value))?;
            }
        }
        // cargo's own path is long and of no interest.
        let program = self.0.get_program();
        match program.to_str() {
            Some(path) if path.ends_with("/cargo") => f.write_str("cargo")?,
            _ => f.write_str(&quoted(program))?,
        }
        self.0.get_args().try_for_each(|argument| write!(f, " {}", quoted(argument)))
    }
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("echo");
        command.args(["plain", "two words", "it's", ""]).env("LAB_REQUIRE", "1");
        assert_eq!(Line(&command).to_string(), r"LAB_REQUIRE=1 echo plain 'two words' 'it'\''s' ''");
    }

    #[test]
    fn every_line_of_both_streams_is_seen_in_order() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; printf three"]);
        let mut seen = Vec::new();
        run_watched(command, |line| seen.push(line.to_owned())).unwrap();
        assert_eq!(seen, ["one", "two", "three"]);
    }

    #[test]
    fn a_failure_says_what_was_run() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 3"]);
        for error in [run(&mut command).unwrap_err(), run_watched(command, |_| {}).unwrap_err()] {
            assert_eq!(error.to_string(), "`sh -c 'exit 3'` failed: exit status: 3");
        }
    }
}
