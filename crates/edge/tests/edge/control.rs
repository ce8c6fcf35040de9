//! The control link, the kept table, and an edge without a control plane.

use std::time::Duration;

use http::StatusCode;
use tram_edge::link::{self, Client, Error, Event, Events, Report};
use tram_edge::{Config, Edge};
use tram_types::routing::{Service, State, TableChange};

use crate::harness::*;

async fn link_to(edge: &Fixture) -> (Client, Events) {
    Client::connect(&link::socket_path(edge.dir.path()))
        .await
        .expect("the edge listens")
}

async fn report(events: &mut Events, wanted: impl Fn(&Report) -> bool) -> Report {
    let found = async {
        loop {
            match events.next().await.expect("the link holds") {
                Event::Report(report) if wanted(&report) => return report,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, found)
        .await
        .expect("such a report comes")
}

#[tokio::test]
async fn tables_are_pushed_whole_and_older_ones_refused() {
    let edge = Fixture::start();
    let (client, _events) = link_to(&edge).await;
    assert_eq!(client.hello().table_version, 0);
    let ready = service(State::Ready, &[says("one").await]);
    client
        .push_table(&table(5, ready.clone()))
        .await
        .expect("accepted");
    assert_eq!(get(edge.http, "/").await.text, "one");
    let refused = client
        .push_table(&table(4, ready.clone()))
        .await
        .expect_err("older");
    assert!(
        matches!(
            refused,
            Error::Refused {
                version: 4,
                held: 5,
                ..
            }
        ),
        "{refused}"
    );
    client
        .push_table(&table(5, ready.clone()))
        .await
        .expect("the same again changes nothing");
    let mut unsound = table(6, ready);
    unsound.services.clear();
    assert!(matches!(
        client.push_table(&unsound).await,
        Err(Error::Refused { held: 5, .. })
    ));
    assert_eq!(get(edge.http, "/").await.text, "one");
    assert!(
        client
            .metrics()
            .await
            .expect("an answer")
            .contains("tram_edge_table_version 5")
    );
}

#[tokio::test]
async fn a_change_makes_the_table_in_force_into_the_next_and_no_other() {
    let edge = Fixture::start();
    let (client, _events) = link_to(&edge).await;
    assert!(client.hello().changes);
    let ready = service(State::Ready, &[says("one").await]);
    client
        .push_table(&table(5, ready.clone()))
        .await
        .expect("accepted");
    assert_eq!(get(edge.http, "/").await.text, "one");
    let change = |base| TableChange {
        base,
        version: base + 2,
        ..TableChange::default()
    };
    let mut moved = ready.clone();
    moved.endpoints = service(State::Ready, &[says("two").await]).endpoints;
    let moved = TableChange {
        services: vec![moved.into()],
        ..change(5)
    };
    client.push_change(&moved).await.expect("accepted");
    assert_eq!(get(edge.http, "/").await.text, "two", "its host was not named");
    assert!(
        matches!(
            client.push_change(&change(6)).await,
            Err(Error::Refused { held: 7, .. })
        ),
        "another table"
    );
    let gone = TableChange {
        services_gone: vec![ready.id],
        hosts_gone: vec!["APP.test".to_owned()],
        ..change(7)
    };
    client.push_change(&gone).await.expect("accepted");
    assert_eq!(get(edge.http, "/").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn busy_and_idle_are_reported_at_once() {
    let edge = Fixture::start();
    let (client, mut events) = link_to(&edge).await;
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let wait = std::sync::Arc::clone(&gate);
    let slow = upstream(false, move |_| {
        let wait = std::sync::Arc::clone(&wait);
        async move {
            wait.acquire().await.expect("open").forget();
            http::Response::new(full("done"))
        }
    })
    .await;
    let ready = service(State::Ready, &[slow]);
    client
        .push_table(&table(1, ready.clone()))
        .await
        .expect("accepted");
    let http = edge.http;
    let caller = tokio::spawn(async move { get(http, "/").await });
    let busy = report(&mut events, |report| {
        report.services.iter().any(|service| service.in_flight == 1)
    })
    .await;
    assert_eq!(
        (busy.services[0].service_id, busy.services[0].arrivals),
        (ready.id, 1)
    );
    gate.add_permits(1);
    caller.await.expect("no panic");
    let idle = report(&mut events, |report| {
        report
            .services
            .iter()
            .any(|service| service.in_flight == 0 && service.arrivals == 1)
    })
    .await;
    assert_eq!(
        (
            idle.table_version,
            idle.services[0].classes,
            idle.services[0].bytes_out
        ),
        (1, [0, 1, 0, 0, 0], 4)
    );
    assert_eq!(idle.services[0].latency.counts.iter().sum::<u64>(), 1);
    let quiet = idle
        .at
        .duration_since(idle.services[0].last_activity.expect("there was a request"));
    assert!(quiet.unsigned_abs() < Duration::from_secs(5), "{quiet}");
}

#[tokio::test]
async fn falling_asleep_is_acknowledged_with_what_is_still_in_flight() {
    let edge = Fixture::start();
    let (client, mut events) = link_to(&edge).await;
    let ready = service(State::Ready, &[says("x").await]);
    client
        .push_table(&table(1, ready.clone()))
        .await
        .expect("accepted");
    get(edge.http, "/").await;
    client
        .push_table(&table(
            2,
            Service {
                state: State::Sleeping,
                ..ready.clone()
            },
        ))
        .await
        .expect("accepted");
    let after = report(&mut events, |report| {
        report.table_version == 2
            && report
                .services
                .iter()
                .any(|service| service.service_id == ready.id)
    })
    .await;
    assert_eq!(after.services[0].in_flight, 0);
}

#[tokio::test]
async fn a_wake_demanded_without_a_controller_is_demanded_again_on_each_link() {
    let edge = Fixture::start();
    let sleeping = service(State::Sleeping, &[]);
    edge.apply(table(1, sleeping.clone()));
    let http = edge.http;
    let caller = tokio::spawn(async move { get(http, "/").await });
    until("one waits", || {
        metric(&edge.handle.metrics(), "tram_edge_queued", "") == Some(1.0)
    })
    .await;
    for _ in 0..2 {
        let (client, mut events) = link_to(&edge).await;
        let demand = async {
            loop {
                if let Event::Wake(demand) = events.next().await.expect("the link holds") {
                    return demand;
                }
            }
        };
        let demand = tokio::time::timeout(PATIENCE, demand).await.expect("demanded");
        assert_eq!((demand.service_id, demand.waiting), (sleeping.id, 1));
        drop(client);
    }
    let (client, _events) = link_to(&edge).await;
    assert_eq!(client.hello().table_version, 1);
    client
        .push_table(&table(
            2,
            Service {
                state: State::Ready,
                endpoints: vec![endpoint(says("late").await)],
                ..sleeping
            },
        ))
        .await
        .expect("accepted");
    assert_eq!(caller.await.expect("no panic").text, "late");
}

#[tokio::test]
async fn traffic_flows_while_the_controller_is_away_and_an_edge_alone_serves_its_last_table() {
    let edge = Fixture::start();
    let ready = service(State::Ready, &[says("still here").await]);
    let (client, mut events) = link_to(&edge).await;
    client.push_table(&table(9, ready)).await.expect("accepted");
    drop(client);
    while events.next().await.is_some() {}
    assert_eq!(get(edge.http, "/").await.text, "still here");
    let kept = edge.dir.path().join("edge-table.json");
    until("the table is kept", || kept.exists()).await;
    let dir = edge.stop().await;
    assert!(!link::socket_path(dir.path()).exists());
    let config = config(dir.path());
    let edge = Fixture::with(dir, config);
    assert_eq!(edge.handle.table_version(), 9);
    assert_eq!(get(edge.http, "/").await.text, "still here");
}

#[tokio::test]
async fn a_table_that_could_not_be_kept_is_kept_later() {
    let edge = Fixture::start();
    // A pipe takes the bytes and cannot be synced, so that the attempt is seen and fails.
    let in_the_way = edge.dir.path().join("edge-table.json.new");
    let made = std::process::Command::new("mkfifo").arg(&in_the_way).status();
    assert!(made.expect("coreutils").success());
    edge.apply(table(3, service(State::Ready, &[])));
    let pipe = in_the_way.clone();
    let attempt = tokio::task::spawn_blocking(move || std::fs::read(pipe));
    assert!(!attempt.await.expect("no panic").expect("reads").is_empty());
    let kept = edge.dir.path().join("edge-table.json");
    assert!(!kept.exists());
    std::fs::remove_file(&in_the_way).expect("is there");
    until("the table is kept", || kept.exists()).await;
}

#[tokio::test]
async fn nonsense_on_the_control_socket_is_not_an_edge_killer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[says("ok").await])));
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{}", b"\0\0\0\x09not json!"] {
        let mut stream = tokio::net::UnixStream::connect(link::socket_path(edge.dir.path()))
            .await
            .expect("the edge listens");
        stream.write_all(bytes).await.expect("writes");
        let mut rest = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest))
            .await
            .expect("hangs up")
            .expect("reads");
        assert!(rest.is_empty());
    }
    assert_eq!(get(edge.http, "/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_is_taken_is_named() {
    let edge = Fixture::start();
    let second = Edge::bind(config(edge.dir.path())).expect_err("the directory is taken");
    assert!(second.to_string().contains("another edge serves"), "{second}");
    let other = tempfile::tempdir().expect("a temporary directory");
    let taken = Edge::bind(Config {
        http: vec![edge.http],
        ..config(other.path())
    })
    .expect_err("the port is taken");
    assert!(
        taken
            .to_string()
            .contains(&format!("port {} on 127.0.0.1 is taken", edge.http.port())),
        "{taken}"
    );
}

#[tokio::test]
async fn metrics_are_served_on_their_own_port() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(dir.path());
    config.metrics = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    let edge = Edge::bind(config).expect("free ports");
    let address = edge.addresses().metrics.expect("asked for");
    edge.handle()
        .apply(table(3, service(State::Ready, &[])))
        .expect("a sound table");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(edge.serve(async move {
        let _dropped = stopped.await;
    }));
    let text = get(address, "/metrics").await.text;
    assert!(
        text.contains("tram_edge_in_flight{service_id=") && text.ends_with("# EOF\n"),
        "{text}"
    );
    assert_eq!(get(address, "/").await.status, StatusCode::NOT_FOUND);
    drop(stop);
    served.await.expect("no panic").expect("ends well");
}

#[tokio::test]
async fn an_instance_that_left_is_reported_until_it_has_finished() {
    let edge = Fixture::start();
    let (client, mut events) = link_to(&edge).await;
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let wait = std::sync::Arc::clone(&gate);
    let old = upstream(false, move |_| {
        let wait = std::sync::Arc::clone(&wait);
        async move {
            wait.acquire().await.expect("open").forget();
            http::Response::new(full("old"))
        }
    })
    .await;
    let base = service(State::Ready, &[old]);
    client
        .push_table(&table(1, base.clone()))
        .await
        .expect("accepted");
    let http = edge.http;
    let caller = tokio::spawn(async move { get(http, "/").await });
    report(&mut events, |report| {
        report
            .busy_instances
            .iter()
            .any(|instance| instance.in_flight == 1)
    })
    .await;
    let new = Service {
        endpoints: vec![endpoint(says("new").await)],
        ..base
    };
    client.push_table(&table(2, new)).await.expect("accepted");
    let leaving = report(&mut events, |report| report.table_version == 2).await;
    assert_eq!(leaving.busy_instances[0].instance_id, endpoint(old).instance_id);
    assert_eq!(get(edge.http, "/").await.text, "new");
    gate.add_permits(1);
    assert_eq!(caller.await.expect("no panic").text, "old");
    report(&mut events, |report| {
        report.table_version == 2 && report.busy_instances.is_empty()
    })
    .await;
}

/// A service with one instance that answers and a canary that fails.
async fn on_trial() -> Service {
    let fails = |_| async move {
        let mut answer = http::Response::new(full("broken"));
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        answer
    };
    let mut service = service(State::Ready, &[says("old").await, upstream(false, fails).await]);
    service.endpoints[0].weight = 9;
    service.endpoints[1].canary = true;
    service
}

#[tokio::test]
async fn a_request_may_choose_the_canary_and_its_failures_are_reported_apart() {
    let edge = Fixture::start();
    let (client, mut events) = link_to(&edge).await;
    let service = on_trial().await;
    client
        .push_table(&table(1, service.clone()))
        .await
        .expect("accepted");
    let ask = async |group: &'static str| {
        let request = request("/").header("x-deployment-group", group);
        send(
            edge.http,
            request.body(http_body_util::Full::default()).expect("a request"),
        )
        .await
    };
    for _ in 0..7 {
        assert_eq!(ask("canary").await.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(ask("prod").await.text, "old");
    }
    let tally = |report: &Report, instance: usize| {
        let told = report.services.iter().flat_map(|it| &it.tallies);
        let id = service.endpoints[instance].instance_id;
        let mut told = told.filter(|it| it.instance_id == id);
        told.next().map(|it| (it.answers, it.failures))
    };
    let whole = |report: &Report| tally(report, 0) == Some((7, 0)) && tally(report, 1) == Some((7, 7));
    report(&mut events, whole).await;
    // The trial is over, and another one begins: it counts from nothing.
    let mut alone = service.clone();
    alone.endpoints.pop();
    client.push_table(&table(2, alone)).await.expect("accepted");
    assert_eq!(
        ask("canary").await.text,
        "old",
        "there is nothing to choose any more"
    );
    client
        .push_table(&table(3, service.clone()))
        .await
        .expect("accepted");
    ask("prod").await;
    report(&mut events, |report| {
        report.table_version == 3 && tally(report, 0) == Some((1, 0))
    })
    .await;
}

#[tokio::test]
async fn a_canary_that_hangs_fails_the_requests_that_its_callers_gave_up() {
    let edge = Fixture::start();
    let (client, mut events) = link_to(&edge).await;
    let hangs = |_| std::future::pending::<http::Response<Body>>();
    let mut service = service(State::Ready, &[says("old").await, upstream(false, hangs).await]);
    service.endpoints[0].weight = 9;
    service.endpoints[1].canary = true;
    service.request_timeout_ms = 300;
    client
        .push_table(&table(1, service.clone()))
        .await
        .expect("accepted");
    let ask = async |group: &'static str| {
        let request = request("/").header("x-deployment-group", group);
        send(
            edge.http,
            request.body(http_body_util::Full::default()).expect("a request"),
        )
        .await
    };
    assert_eq!(ask("prod").await.text, "old");
    for _ in 0..2 {
        assert_eq!(ask("canary").await.status, StatusCode::GATEWAY_TIMEOUT);
    }
    let canary = service.endpoints[1].instance_id;
    report(&mut events, |report| {
        let mut told = report.services.iter().flat_map(|it| &it.tallies);
        told.any(|it| it.instance_id == canary && (it.answers, it.failures) == (2, 2))
    })
    .await;
}
