//! The life of one instance.

use std::time::Duration;

use bytes::Bytes;
use tram_site::spec::FileSpec;
use tram_site::streams::{ExecInput, ExecOutput, TerminalSize};
use tram_site::{EndCause, Error, ExecRequest, InstancePhase, LogCursor, LogQuery, LogStream, Site};
use tram_types::units::MIB;
use tram_types::{Generation, InstanceId};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn start_request_exec_stop_forget() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let mut spec = machine.spec("shop", "web");
    spec.files = vec![FileSpec {
        path: "/etc/app.conf".to_owned(),
        content: "key=1\n".to_owned(),
        mode: 0o640,
    }];
    let begun = tokio::time::Instant::now();
    let address = up(&site, &spec).await;
    println!("image and start to healthy: {:?}", begun.elapsed());
    assert!(get(address).await.contains("it works"));

    // Orders are idempotent, and old ones are refused.
    site.start(&spec, Generation(2)).await.unwrap();
    let old = site.start(&spec, Generation(1)).await.unwrap_err();
    assert!(
        matches!(
            old,
            Error::OldGeneration {
                given: 1,
                seen: 2,
                ..
            }
        ),
        "{old}"
    );

    let (output, code) = shell(
        &site,
        spec.id,
        "echo $GREETING $HOSTNAME $HOME; id -u; cat /etc/app.conf; hostname; exit 7",
    )
    .await;
    let short = spec.id.short();
    assert_eq!(
        (output.as_str(), code),
        (
            format!("hello {short} /home/app\n1000\nkey=1\n{short}\n").as_str(),
            7
        )
    );
    let usage = site.usage(spec.id).await.unwrap();
    assert!(
        usage.pids >= 1 && usage.memory_bytes > 0 && usage.memory_bytes < 64 * MIB,
        "{usage:?}"
    );

    site.log_platform(spec.id, "a word of the platform")
        .await
        .unwrap();
    site.stop(spec.id, Duration::from_secs(5), Generation(3))
        .await
        .unwrap();
    assert_eq!(ended(&site, spec.id).await, EndCause::Stopped);
    site.stop(spec.id, Duration::from_secs(5), Generation(3))
        .await
        .unwrap();
    site.forget(spec.id, Generation(4)).await.unwrap();
    site.forget(spec.id, Generation(4)).await.unwrap();
    assert_eq!(site.observe_instance(spec.id).await.unwrap(), None);
    assert!(
        site.start(&spec, Generation(3)).await.is_err(),
        "a late order revives nothing"
    );
    assert!(
        log_lines(&site, spec.id)
            .await
            .contains(&"koyeb: a word of the platform".to_owned())
    );
    site.remove_logs(spec.id).await.unwrap();
    assert!(log_lines(&site, spec.id).await.is_empty());
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_needs_no_registry() {
    let Some(mut machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let first = machine.spec("shop", "web");
    up(&site, &first).await;
    machine.stop_registry();
    let second = tram_site::InstanceSpec {
        id: InstanceId::random(),
        ..first.clone()
    };
    assert!(get(up(&site, &second).await).await.contains("it works"));
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_say_why() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let crash = machine.script("echo to stdout; echo to stderr >&2; exit 3");
    start(&site, &crash).await;
    assert_eq!(ended(&site, crash.id).await, EndCause::Exited { code: 3 });
    let lines = log_lines(&site, crash.id).await;
    assert!(
        lines.contains(&"stdout: to stdout".to_owned()) && lines.contains(&"stderr: to stderr".to_owned())
    );

    // The first process of a namespace is not killed by its own signals, but the kernel's reach it: no stack is
    // left for the function that calls itself.
    let killed = machine.script("f() { f; }; f");
    start(&site, &killed).await;
    assert_eq!(ended(&site, killed.id).await, EndCause::Killed { signal: 11 });

    // Doubles a variable until there is no memory.
    let greedy = machine.script("x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done");
    start(&site, &greedy).await;
    assert_eq!(
        ended(&site, greedy.id).await,
        EndCause::OutOfMemory {
            limit_bytes: 64 * MIB
        }
    );

    let mut missing = machine.spec("app", "missing");
    missing.entrypoint = vec!["/no/such/program".to_owned()];
    start(&site, &missing).await;
    let cause = ended(&site, missing.id).await.to_string();
    assert!(
        cause.starts_with("the program `/no/such/program` is not in the image"),
        "{cause}"
    );

    let mut unknown = machine.spec("app", "unknown");
    unknown.image.reference = "localhost:1/nothing:1".to_owned();
    site.start(&unknown, Generation(1)).await.unwrap();
    site.log_platform(unknown.id, "before there is a log")
        .await
        .unwrap();
    let cause = ended(&site, unknown.id).await.to_string();
    assert!(cause.contains("is not on this machine yet"), "{cause}");
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_port_is_explained() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let mut spec = machine.spec("shop", "web");
    spec.entrypoint = ["/bin/httpd", "-f", "-p", "3000"].map(str::to_owned).to_vec();
    start(&site, &spec).await;
    let told = "nothing listens on port 8000: connection refused; \
                the program listens on 3000, not on 8000: set the port to 3000";
    let seen = until(&site, spec.id, |seen| {
        matches!(&seen.phase, InstancePhase::Starting { last_failure: Some(reason) } if reason == told)
    })
    .await;
    assert!(!seen.phase.is_healthy());
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn freeze_and_thaw() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let mut spec = machine.spec("shop", "web");
    spec.health_checks[0].interval = Duration::from_millis(300);
    let address = up(&site, &spec).await;
    site.freeze(spec.id, Generation(2)).await.unwrap();
    site.freeze(spec.id, Generation(2)).await.unwrap();
    let seen = site.observe_instance(spec.id).await.unwrap().unwrap();
    assert_eq!(seen.phase, InstancePhase::Frozen);
    let silent = tokio::time::timeout(Duration::from_millis(700), get(address)).await;
    assert!(silent.is_err(), "a frozen program does not answer");
    assert_eq!(
        site.observe_instance(spec.id).await.unwrap().unwrap().phase,
        InstancePhase::Frozen
    );
    let begun = tokio::time::Instant::now();
    site.thaw(spec.id, Generation(3)).await.unwrap();
    assert!(get(address).await.contains("it works"));
    println!("thaw to answer: {:?}", begun.elapsed());
    assert!(
        site.observe_instance(spec.id)
            .await
            .unwrap()
            .unwrap()
            .phase
            .is_healthy()
    );
    // A frozen instance can be stopped.
    site.freeze(spec.id, Generation(4)).await.unwrap();
    site.stop(spec.id, Duration::from_secs(3), Generation(5))
        .await
        .unwrap();
    assert_eq!(ended(&site, spec.id).await, EndCause::Stopped);
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_with_pipes_and_terminals() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let spec = machine.spec("shop", "web");
    up(&site, &spec).await;

    let request = ExecRequest {
        command: vec!["/bin/cat".to_owned()],
        ..ExecRequest::default()
    };
    let mut session = site.exec(spec.id, &request).await.unwrap();
    let block = Bytes::from(vec![b'x'; 300_000]);
    let (input, sent) = (session.input.clone(), block.clone());
    tokio::spawn(async move {
        input.send(ExecInput::Stdin(sent)).await.unwrap();
        input.send(ExecInput::CloseStdin).await.unwrap();
    });
    let mut received = 0;
    while let Some(output) = session.output.recv().await {
        match output {
            ExecOutput::Stdout(bytes) => received += bytes.len(),
            ExecOutput::Stderr(bytes) => panic!("{bytes:?}"),
            ExecOutput::Exited { code } => assert_eq!(code, 0),
        }
    }
    assert_eq!(received, block.len());

    let request = ExecRequest {
        command: vec!["/bin/sh".to_owned()],
        terminal: Some(TerminalSize {
            height: 24,
            width: 80,
        }),
        ..ExecRequest::default()
    };
    let mut session = site.exec(spec.id, &request).await.unwrap();
    session
        .input
        .send(ExecInput::Stdin(Bytes::from_static(
            b"echo sum $((40+2)); exit 5\n",
        )))
        .await
        .unwrap();
    let (mut text, mut exit) = (String::new(), None);
    while let Some(output) = tokio::time::timeout(PATIENCE, session.output.recv())
        .await
        .unwrap()
    {
        match output {
            ExecOutput::Stdout(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            ExecOutput::Stderr(bytes) => panic!("{bytes:?}"),
            ExecOutput::Exited { code } => exit = Some(code),
        }
    }
    assert!(text.contains("sum 42"), "{text}");
    assert_eq!(exit, Some(5));

    // Whoever leaves ends the command.
    let request = ExecRequest {
        command: vec!["/bin/sleep".to_owned(), "1000".to_owned()],
        ..ExecRequest::default()
    };
    let before = site.usage(spec.id).await.unwrap().pids;
    let session = site.exec(spec.id, &request).await.unwrap();
    assert!(site.usage(spec.id).await.unwrap().pids > before);
    drop(session);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while site.usage(spec.id).await.unwrap().pids > before {
        assert!(tokio::time::Instant::now() < deadline, "the command goes on");
        tokio::task::yield_now().await;
    }
    let refused = ExecRequest {
        command: vec!["/nope".to_owned()],
        ..ExecRequest::default()
    };
    assert!(matches!(
        site.exec(spec.id, &refused).await,
        Err(Error::Refused { .. })
    ));
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_paged_and_filtered() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let spec = machine.script("i=0; while [ $i -lt 50 ]; do echo line $i; i=$((i+1)); done; echo last >&2");
    start(&site, &spec).await;
    ended(&site, spec.id).await;
    let read = async |query: LogQuery| {
        let page = site.logs(spec.id, &query).await.unwrap();
        let lines: Vec<String> = page.entries.iter().map(|entry| entry.message.clone()).collect();
        (
            lines,
            page.has_more,
            page.entries.last().map(|entry| entry.cursor),
        )
    };
    // The order of lines of two streams is only as good as the reading of two pipes.
    let stdout = || LogQuery {
        limit: 2,
        streams: vec![LogStream::Stdout],
        ..LogQuery::default()
    };
    let (first, more, cursor) = read(stdout()).await;
    assert_eq!(
        (first, more),
        (vec!["line 0".to_owned(), "line 1".to_owned()], true)
    );
    let (next, _, _) = read(LogQuery {
        limit: 1,
        after: cursor,
        ..stdout()
    })
    .await;
    assert_eq!(next, ["line 2"]);
    let stderr = LogQuery {
        limit: 9,
        streams: vec![LogStream::Stderr],
        ..LogQuery::default()
    };
    let (errors, more, _) = read(stderr).await;
    assert_eq!((errors, more), (vec!["last".to_owned()], false));
    let newest = LogQuery {
        limit: 2,
        newest: true,
        streams: vec![LogStream::Stdout],
        ..LogQuery::default()
    };
    let (newest, more, last) = read(newest).await;
    assert_eq!(
        (newest, more),
        (vec!["line 48".to_owned(), "line 49".to_owned()], true)
    );
    let after = LogQuery {
        limit: 9,
        newest: true,
        after: last,
        ..LogQuery::default()
    };
    assert!(read(after).await.0.iter().all(|line| line == "last"));
    let query = LogQuery {
        limit: 1,
        after: Some(LogCursor(1)),
        ..LogQuery::default()
    };
    assert!(
        site.logs(InstanceId::random(), &query)
            .await
            .unwrap()
            .entries
            .is_empty()
    );
    machine.finish(site).await;
}
