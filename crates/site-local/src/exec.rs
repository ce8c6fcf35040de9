//! Commands in instances: the supervisor's file descriptors as the channels of a session.
//!
//! One task a session, and one for each direction. The one design choice to know: a full channel stops the reading,
//! a full pipe stops the program, so a slow listener costs no memory. The session ends the command, with
//! its process group, when nobody listens any more.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tram_image::{Image, ImageConfig};
use tram_sandbox::client::{EXIT_BYTES, Exec, ExecIo, decode_exit, kill, resize};
use tram_sandbox::protocol::{ExecSpec, ExitStatus, TtySize};
use tram_site::streams::{EXEC_CHANNEL_FRAMES, ExecInput, ExecOutput, TerminalSize};
use tram_site::{Error, ExecRequest, ExecSession, InstanceSpec};

use crate::devices::Given;
use crate::launch;

/// One read: what a pipe holds.
const READ_BYTES: usize = 64 * 1024;
/// After the command ended, something it left in the background may hold its output open; what has not come after
/// so long of silence is not waited for.
const SILENCE_AFTER_END: Duration = Duration::from_millis(200);
/// What shells say for a signal: this and its number.
const SIGNAL_CODE: i32 = 128;
/// When nobody learnt how it ended, it was killed.
const UNKNOWN_CODE: i32 = SIGNAL_CODE + 9;

/// What the supervisor is asked: the instance's environment and the request's over it.
pub(crate) async fn spec(
    instance: &InstanceSpec,
    devices: Option<&Given>,
    image: Option<Image>,
    request: &ExecRequest,
) -> Result<ExecSpec, Error> {
    let (config, home) = match image {
        None => (ImageConfig::default(), None),
        Some(image) => {
            // The program runs already, so a user that cannot be found here only costs `HOME`.
            let found = crate::images::user_of(&image).await.ok();
            let home = found.map(|user| user.home.to_string_lossy().into_owned());
            (image.config, home)
        }
    };
    let mut environment = launch::environment(instance, &config, home.as_deref());
    if instance.executor.is_some() {
        // For the executor alone.
        environment.remove(crate::executor::SECRET_VARIABLE);
    }
    if let Some(given) = devices {
        given.extend(&mut environment);
    }
    environment.extend(request.env.iter().cloned());
    if request.terminal.is_some() {
        environment
            .entry("TERM".to_owned())
            .or_insert_with(|| "xterm-256color".to_owned());
    }
    let spec = ExecSpec {
        argv: request.command.clone(),
        env: environment.into_iter().collect(),
        cwd: None,
        user: None,
        tty: request.terminal.map(size),
    };
    spec.validate().map_err(|error| Error::Refused {
        message: format!("the command cannot be run: {error}"),
    })?;
    Ok(spec)
}

const fn size(size: TerminalSize) -> TtySize {
    TtySize {
        rows: size.height,
        columns: size.width,
    }
}

/// Connects a started command with a new session. `end` ends it with the site.
pub(crate) fn session(exec: Exec, end: CancellationToken) -> io::Result<ExecSession> {
    let (input, from_session) = mpsc::channel(EXEC_CHANNEL_FRAMES);
    let (to_session, output) = mpsc::channel(EXEC_CHANNEL_FRAMES);
    let exit = asynchronous(exec.exit)?;
    let (over, see_over) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut readers = JoinSet::new();
    match exec.io {
        ExecIo::Tty { master } => {
            let reading = asynchronous(master.try_clone()?)?;
            let writing = asynchronous(master)?;
            readers.spawn(read(reading, to_session.clone(), ExecOutput::Stdout, see_over));
            tasks.spawn(write(Some(writing), true, from_session));
        }
        ExecIo::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            let (stdin, stdout, stderr) =
                (asynchronous(stdin)?, asynchronous(stdout)?, asynchronous(stderr)?);
            readers.spawn(read(
                stdout,
                to_session.clone(),
                ExecOutput::Stdout,
                see_over.clone(),
            ));
            readers.spawn(read(stderr, to_session.clone(), ExecOutput::Stderr, see_over));
            tasks.spawn(write(Some(stdin), false, from_session));
        }
    }
    let process = exec.process;
    tokio::spawn(async move {
        // Dropped at the end, which ends the tasks.
        let _tasks = tasks;
        let ended = tokio::select! {
            ended = read_exit(&exit) => ended,
            () = to_session.closed() => None,
            () = end.cancelled() => None,
        };
        let Some(status) = ended else {
            // Gone already is what is wanted.
            let _ended = kill(&process);
            return;
        };
        over.send_replace(true);
        // Each ends at the end of its stream, after a silence, or when nobody listens.
        while readers.join_next().await.is_some() {}
        let code = match status {
            Some(ExitStatus::Code(code)) => code,
            Some(ExitStatus::Signal(signal)) => SIGNAL_CODE + signal,
            None => UNKNOWN_CODE,
        };
        let _unheard = to_session.send(ExecOutput::Exited { code }).await;
    });
    Ok(ExecSession { input, output })
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for types that may change their descriptor; an OwnedFd cannot"
)]
fn asynchronous(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    AsyncFd::new(fd)
}

async fn receive(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    fd.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?))
        .await
}

/// `Some(None)` when the status was never learnt.
async fn read_exit(exit: &AsyncFd<OwnedFd>) -> Option<Option<ExitStatus>> {
    let mut bytes = [0; EXIT_BYTES];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..)
        && !rest.is_empty()
    {
        match receive(exit, rest).await {
            Ok(0) | Err(_) => return Some(None),
            Ok(count) => filled += count,
        }
    }
    Some(decode_exit(bytes))
}

async fn read(
    fd: AsyncFd<OwnedFd>,
    output: mpsc::Sender<ExecOutput>,
    wrap: fn(Bytes) -> ExecOutput,
    mut over: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = tokio::select! {
            biased;
            // A terminal says "input/output error" when the last program left it.
            count = receive(&fd, &mut buffer) => count.unwrap_or(0),
            () = silence(&mut over) => 0,
        };
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return;
        };
        if output.send(wrap(Bytes::copy_from_slice(bytes))).await.is_err() {
            return;
        }
    }
}

async fn silence(over: &mut watch::Receiver<bool>) {
    // The sender lives until every reader has ended.
    drop(over.wait_for(|over| *over).await);
    tokio::time::sleep(SILENCE_AFTER_END).await;
}

/// `fd` is dropped, and with it a pipe closed, when there is no more input.
async fn write(mut fd: Option<AsyncFd<OwnedFd>>, terminal: bool, mut input: mpsc::Receiver<ExecInput>) {
    while let Some(frame) = input.recv().await {
        let Some(open) = &fd else { continue };
        match frame {
            ExecInput::Stdin(bytes) => {
                if send(open, &bytes).await.is_err() {
                    fd = None;
                }
            }
            // A terminal stays open for its output; what ends input there is a character.
            ExecInput::CloseStdin if terminal => {
                const END_OF_TRANSMISSION: &[u8] = &[4];
                let _gone = send(open, END_OF_TRANSMISSION).await;
            }
            ExecInput::CloseStdin => fd = None,
            ExecInput::Resize(wanted) => {
                if terminal {
                    let _gone = resize(open.get_ref().as_fd(), size(wanted));
                }
            }
        }
    }
}

async fn send(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = fd
            .async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?))
            .await?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}
