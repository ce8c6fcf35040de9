//! `tram-engine serve`, from the start to the end: listen, load, serve, finish.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::engine::{Engine, Keep, Setup};
use crate::grammar::Grammars;
use crate::http::{self, Front, Served};
use crate::model::{Draft, Model, Problem as ModelProblem};
use crate::settings::Serve;

/// How long running answers may take after SIGTERM, and keeping prompts after them. Below the 30 s that orchestrators
/// commonly wait before they kill.
const FINISH_WITHIN: Duration = Duration::from_secs(25);
/// How often the end of the engine's thread is looked for, once it was told to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Threads that read requests: templates, tokens, schemas. More would only take the processors from the kernels.
const READERS_MAX: usize = 4;

/// Why the program ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error(transparent)]
    Model(#[from] ModelProblem),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start")]
    Start(#[source] std::io::Error),
    #[error("the engine's thread has failed")]
    Engine,
}

impl Problem {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Model(problem) => problem.exit_code(),
            Self::Listen { .. } | Self::Start(_) | Self::Engine => 1,
        }
    }
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(settings: Serve) -> Result<(), Problem> {
    // One thread for all connections: the processors belong to the kernels.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(READERS_MAX)
        .build()
        .map_err(Problem::Start)?;
    let outcome = runtime.block_on(serve(settings));
    // A reader of a request that nobody waits for any more is not waited for.
    runtime.shutdown_background();
    outcome
}

async fn serve(settings: Serve) -> Result<(), Problem> {
    let address = settings.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| Problem::Listen { address, source })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Problem::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Problem::Start)?;
    let front = Arc::new(Front::default());
    let (stop, stopped) = watch::channel(false);
    let mut connections = tokio::spawn(http::serve(listener, front.clone(), stopped));
    let (loaded, loading) = tokio::sync::oneshot::channel();
    // A thread of its own: loading is not to keep the program from ending, so nobody waits for it.
    let loader = std::thread::Builder::new().name("loader".to_owned());
    let load = move || {
        let _ = loaded.send(load(&settings));
    };
    loader.spawn(load).map_err(Problem::Start)?;
    let served = tokio::select! {
        loaded = loading => Arc::new(loaded.map_err(|_| Problem::Engine)??),
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    // Nobody else sets it.
    let _ = front.served.set(served.clone());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = ended(&served.engine) => return Err(Problem::Engine),
    }
    tracing::info!("stopping: what runs is finished, nothing new is taken");
    front.stopping.store(true, Ordering::Relaxed);
    served.engine.stop();
    // Answers that wait are refused, those that run go to their end; then the connections may close.
    let finish = async {
        ended(&served.engine).await;
        let _ = stop.send(true);
        let _ = (&mut connections).await;
    };
    if tokio::time::timeout(FINISH_WITHIN, finish).await.is_err() {
        tracing::warn!("stopped before every answer was whole");
    }
    Ok(())
}

/// Waits for the end of the engine's thread, which tells nobody.
async fn ended(engine: &Engine) {
    while !engine.ended() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn load(settings: &Serve) -> Result<Served, ModelProblem> {
    let began = Instant::now();
    let tokens = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let model = Model::load(
        &settings.model,
        settings.chat_template.as_deref(),
        settings.context_length.map(tokens),
        settings.embeddings,
        &settings.adapters,
    )?;
    let setup = Setup {
        parallel: usize::from(settings.parallel),
        threads: settings.threads(),
        // One answer has to fit, whatever happens; more than that is the operator's to give.
        cells: settings.cache_tokens.map_or(0, tokens).max(model.context_length),
        guess: usize::from(settings.guess_tokens),
    };
    let draft = settings.draft.as_deref().map(|path| Draft::load(&model, path));
    let draft = draft.transpose()?.map(Arc::new);
    let keep = settings.keep.clone().map(|path| Keep {
        path,
        bytes_max: settings.keep_bytes,
    });
    let engine = Engine::start(model.clone(), draft, setup, keep, settings.queue)?;
    tracing::info!(
        model = settings.name(),
        context_length = model.context_length,
        cache_tokens = setup.cells,
        parallel = setup.parallel,
        threads = setup.threads,
        milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "ready"
    );
    Ok(Served {
        name: settings.name(),
        grammars: Grammars::new(model.clone()),
        model,
        engine,
        answers_max: setup.parallel,
        created: jiff::Timestamp::now().as_second(),
    })
}
