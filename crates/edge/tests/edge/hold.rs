//! Waiting for services that sleep.

use std::time::{Duration, Instant};

use http::StatusCode;
use http_body_util::Full;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tram_edge::link::{self, Client, Event};
use tram_types::routing::{Service, State};
use uuid::Uuid;

use crate::harness::*;

fn queued(edge: &Fixture) -> Option<f64> {
    metric(&edge.handle.metrics(), "tram_edge_queued", "shop/web")
}

fn wakes(edge: &Fixture) -> Option<f64> {
    metric(&edge.handle.metrics(), "tram_edge_wakes_total", "shop/web")
}

fn awake(sleeping: &Service, address: std::net::SocketAddr) -> Service {
    Service {
        state: State::Ready,
        endpoints: vec![endpoint(address)],
        ..sleeping.clone()
    }
}

#[tokio::test]
async fn a_burst_at_zero_is_held_whole_and_demands_one_wake() {
    let edge = Fixture::start();
    let sleeping = service(State::Sleeping, &[]);
    edge.apply(table(1, sleeping.clone()));
    let (_client, mut events) = Client::connect(&link::socket_path(edge.dir.path()))
        .await
        .expect("the edge listens");
    let http = edge.http;
    let callers: Vec<_> = (0..100)
        .map(|_| tokio::spawn(async move { get(http, "/").await }))
        .collect();
    let demand = loop {
        if let Some(Event::Wake(demand)) = tokio::time::timeout(PATIENCE, events.next())
            .await
            .expect("in time")
        {
            break demand;
        }
    };
    assert_eq!(demand.service_id, sleeping.id);
    until("all wait", || queued(&edge) == Some(100.0)).await;
    edge.apply(table(
        2,
        Service {
            state: State::Starting {
                since: jiff::Timestamp::now(),
            },
            ..sleeping.clone()
        },
    ));
    assert_eq!(queued(&edge), Some(100.0), "a start lets nobody go on");
    edge.apply(table(3, awake(&sleeping, says("awake").await)));
    for caller in callers {
        let answer = caller.await.expect("no panic");
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "awake"));
    }
    assert_eq!(wakes(&edge), Some(1.0));
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(100), events.next()).await {
        assert!(!matches!(event, Event::Wake(_)), "a second demand");
    }
}

#[tokio::test]
async fn a_light_sleeper_is_woken_though_it_has_an_endpoint() {
    let edge = Fixture::start();
    let address = says("thawed").await;
    let sleeping = service(State::Sleeping, &[address]);
    edge.apply(table(1, sleeping.clone()));
    let http = edge.http;
    let caller = tokio::spawn(async move { get(http, "/").await });
    until("one waits", || queued(&edge) == Some(1.0)).await;
    edge.apply(table(2, awake(&sleeping, address)));
    assert_eq!(caller.await.expect("no panic").text, "thawed");
}

#[tokio::test]
async fn a_held_request_keeps_its_body() {
    let edge = Fixture::start();
    let sleeping = service(State::Sleeping, &[]);
    edge.apply(table(1, sleeping.clone()));
    let http = edge.http;
    let asked = request("/form")
        .method("POST")
        .body(Full::from("x".repeat(300_000)))
        .expect("a request");
    let caller = tokio::spawn(async move { send(http, asked).await });
    until("one waits", || queued(&edge) == Some(1.0)).await;
    edge.apply(table(2, awake(&sleeping, echo(false).await)));
    let answer = caller.await.expect("no panic");
    assert!(answer.text.starts_with("POST /form\n") && answer.text.ends_with(&"x".repeat(300_000)));
}

#[tokio::test]
async fn a_failed_start_is_told_to_all_at_once() {
    let edge = Fixture::start();
    let sleeping = service(State::Sleeping, &[]);
    edge.apply(table(1, sleeping.clone()));
    let http = edge.http;
    let callers: Vec<_> = (0..10)
        .map(|_| tokio::spawn(async move { get(http, "/").await }))
        .collect();
    until("all wait", || queued(&edge) == Some(10.0)).await;
    let begun = Instant::now();
    let state = State::Failed {
        message: "the program exited with code 1".into(),
        deployment_id: Uuid::new_v4(),
    };
    edge.apply(table(2, Service { state, ..sleeping }));
    for caller in callers {
        let answer = caller.await.expect("no panic");
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::SERVICE_UNAVAILABLE, "deployment_failed")
        );
        assert!(answer.text.contains("exited with code 1"));
    }
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "long before the hold deadline"
    );
}

#[tokio::test]
async fn a_wait_ends_at_the_services_deadline() {
    let edge = Fixture::start();
    let mut sleeping = service(State::Sleeping, &[]);
    sleeping.hold_deadline_ms = 200;
    edge.apply(table(1, sleeping));
    let begun = Instant::now();
    let answer = get(edge.http, "/").await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::GATEWAY_TIMEOUT, "still_starting")
    );
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!(queued(&edge), Some(0.0));
}

#[tokio::test]
async fn who_waited_for_memory_in_vain_is_told_so_and_when_to_come_back() {
    let edge = Fixture::start();
    let mut sleeping = service(State::Sleeping, &[]);
    sleeping.hold_deadline_ms = 200;
    sleeping.waits_for_memory = true;
    edge.apply(table(1, sleeping.clone()));
    let answer = get(edge.http, "/").await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::SERVICE_UNAVAILABLE, "no_memory")
    );
    assert_eq!(answer.headers["retry-after"], "10");
    assert!(
        answer.text.contains("needed the memory of this machine"),
        "{}",
        answer.text
    );
    // What the newest table says counts.
    sleeping.waits_for_memory = false;
    edge.apply(table(2, sleeping));
    assert_eq!(get(edge.http, "/").await.code(), "still_starting");
}

#[tokio::test]
async fn a_held_caller_is_answered_when_the_edge_stops() {
    let mut edge = Fixture::start();
    edge.apply(table(1, service(State::Sleeping, &[])));
    let http = edge.http;
    let caller = tokio::spawn(async move { get(http, "/").await });
    until("one waits", || queued(&edge) == Some(1.0)).await;
    edge.begin_stop();
    let answer = caller.await.expect("no panic");
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::SERVICE_UNAVAILABLE, "edge_stopping")
    );
    assert_eq!(answer.headers["retry-after"], "1");
    edge.stop().await;
}

#[tokio::test]
async fn the_queue_is_bounded_and_callers_that_leave_make_room() {
    let edge = Fixture::start();
    let mut sleeping = service(State::Sleeping, &[]);
    sleeping.hold_queue_max = 1;
    edge.apply(table(1, sleeping.clone()));
    let mut leaver = TcpStream::connect(edge.http).await.expect("listens");
    leaver
        .write_all(b"GET / HTTP/1.1\r\nhost: app.test\r\n\r\n")
        .await
        .expect("writes");
    until("one waits", || queued(&edge) == Some(1.0)).await;
    let refused = get(edge.http, "/").await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::SERVICE_UNAVAILABLE, "queue_full")
    );
    let retry: u64 = refused.headers["retry-after"]
        .to_str()
        .expect("text")
        .parse()
        .expect("seconds");
    assert!((1..=5).contains(&retry));
    drop(leaver);
    until("the leaver is forgotten", || queued(&edge) == Some(0.0)).await;
    let http = edge.http;
    let next = tokio::spawn(async move { get(http, "/").await });
    until("the next one waits", || queued(&edge) == Some(1.0)).await;
    assert_eq!(wakes(&edge), Some(2.0), "a new wait demands anew");
    edge.apply(table(2, awake(&sleeping, says("up").await)));
    assert_eq!(next.await.expect("no panic").text, "up");
}

#[tokio::test]
async fn a_service_that_vanishes_under_its_callers_is_told() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Sleeping, &[])));
    let http = edge.http;
    let caller = tokio::spawn(async move { get(http, "/").await });
    until("one waits", || queued(&edge) == Some(1.0)).await;
    let mut without = table(2, service(State::Ready, &[]));
    without.hosts.clear();
    edge.apply(without);
    assert_eq!(caller.await.expect("no panic").code(), "no_such_app");
}

/// Every caller is answered, and told the truth, whatever order the states come in.
#[tokio::test]
async fn no_caller_is_lost_however_a_service_sleeps_and_wakes() {
    const CALLERS: usize = 8;
    const ASKED: usize = 60;
    let edge = Fixture::start();
    let address = says("awake").await;
    let base = service(State::Sleeping, &[]);
    edge.apply(table(1, base.clone()));
    let http = edge.http;
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            tokio::spawn(async move {
                let mut answered = 0;
                for _ in 0..ASKED {
                    let answer = get(http, "/").await;
                    match (answer.status, answer.code()) {
                        (StatusCode::OK, "") => assert_eq!(answer.text, "awake"),
                        (StatusCode::SERVICE_UNAVAILABLE, "deployment_failed" | "service_paused") => {}
                        other => panic!("{other:?}"),
                    }
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let seed = Uuid::new_v4().as_u128();
    eprintln!("seed {seed}");
    let mut random = seed;
    let mut version = 2;
    while callers.iter().any(|caller| !caller.is_finished()) {
        random = random
            .wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645)
            .wrapping_add(1);
        let endpoints = vec![endpoint(address)];
        let (state, endpoints) = match (random >> 100) % 6 {
            0 => (State::Sleeping, vec![]),
            1 => (State::Sleeping, endpoints),
            2 => (
                State::Starting {
                    since: jiff::Timestamp::now(),
                },
                vec![],
            ),
            3 => (
                State::Failed {
                    message: "on purpose".into(),
                    deployment_id: Uuid::new_v4(),
                },
                vec![],
            ),
            4 => (State::Paused, endpoints),
            _ => (State::Ready, endpoints),
        };
        edge.apply(table(
            version,
            Service {
                state,
                endpoints,
                ..base.clone()
            },
        ));
        version += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for caller in callers {
        assert_eq!(caller.await.expect("no caller was lost"), ASKED);
    }
    until("nothing is in flight", || {
        metric(&edge.handle.metrics(), "tram_edge_in_flight", "") == Some(0.0)
    })
    .await;
    assert_eq!(queued(&edge), Some(0.0));
    let arrivals = metric(&edge.handle.metrics(), "tram_edge_arrivals_total", "");
    assert_eq!(
        arrivals,
        Some(480.0),
        "each counted once, however often it waited"
    );
}
