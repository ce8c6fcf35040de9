//! The deadlines of a connection on one timer.
//!
//! Every request on a kept connection sets two deadlines, for its head and for its answer, and hardly any comes due. A
//! timer for each is two entries made and taken out under a lock, for every request. Here a deadline is a number, and
//! the one timer of the connection is set to the earliest that was ever asked for: it rings too early most of the time,
//! about once in [`REST`], and is then set again by those that still wait. Nothing has to be done when one is dropped.
//!
//! It works because all who wait are polled by the one task of the connection, see [`watched`].

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use crate::pool::{epoch, ms_since_epoch};

/// The timer of a connection on which nobody waits for anything.
const REST: Duration = Duration::from_secs(60);

/// The deadlines of one connection, in milliseconds after [`epoch`].
#[derive(Debug)]
pub(crate) struct Alarm {
    /// When the timer rang last; zero: it did not.
    rang: AtomicU64,
    /// The earliest deadline since then.
    earliest: AtomicU64,
    /// What the timer is set to; zero: there is none.
    set: AtomicU64,
}

impl Default for Alarm {
    fn default() -> Self {
        Self {
            rang: AtomicU64::new(0),
            earliest: AtomicU64::new(u64::MAX),
            set: AtomicU64::new(0),
        }
    }
}

impl Alarm {
    /// Whether the connection's task watches it.
    pub(crate) fn is_watched(&self) -> bool {
        self.set.load(Relaxed) != 0
    }

    /// Is over once `deadline` has come. To be polled by the connection's task alone.
    pub(crate) fn until(self: &Arc<Self>, deadline: Instant) -> Until {
        Until {
            alarm: Arc::clone(self),
            // Never early: the timer's clock counts whole milliseconds.
            deadline: ms_since_epoch(deadline).saturating_add(1),
        }
    }
}

/// See [`Alarm::until`].
#[derive(Debug)]
pub(crate) struct Until {
    alarm: Arc<Alarm>,
    deadline: u64,
}

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.alarm.rang.load(Relaxed) >= self.deadline {
            return Poll::Ready(());
        }
        if self.alarm.earliest.load(Relaxed) > self.deadline {
            self.alarm.earliest.store(self.deadline, Relaxed);
        }
        Poll::Pending
    }
}

impl hyper::rt::Sleep for Until {}

/// An [`Alarm`] as hyper wants its timers.
#[derive(Debug, Clone)]
pub(crate) struct Timer(pub(crate) Arc<Alarm>);

impl hyper::rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(self.0.until(deadline))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// Does a connection's work with its timer beside it. Whoever waits for a deadline in there is polled whenever the work
/// is.
pub(crate) async fn watched<T>(alarm: &Alarm, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let at = |deadline: u64| tokio::time::Instant::from_std(epoch() + Duration::from_millis(deadline));
    let rest = || ms_since_epoch((tokio::time::Instant::now() + REST).into_std());
    let mut set = rest();
    alarm.set.store(set, Relaxed);
    let mut timer = pin!(sleep_until(at(set)));
    let mut first = true;
    poll_fn(move |cx| {
        let mut rang = !first && timer.as_mut().poll(cx).is_ready();
        loop {
            if rang {
                alarm.rang.store(set, Relaxed);
                alarm.earliest.store(u64::MAX, Relaxed);
            }
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            let wanted = alarm.earliest.load(Relaxed);
            if !(rang || first || wanted < set) {
                return Poll::Pending;
            }
            set = if rang || first { rest().min(wanted) } else { wanted };
            first = false;
            alarm.set.store(set, Relaxed);
            timer.as_mut().reset(at(set));
            // A deadline that is past already.
            rang = timer.as_mut().poll(cx).is_ready();
            if !rang {
                return Poll::Pending;
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Waits on an alarm with work that sets many deadlines, as requests do; gives what it took.
    async fn waits(deadline: Duration, before: &[Duration]) -> Duration {
        let (alarm, began) = (Arc::new(Alarm::default()), now());
        watched(&alarm, async {
            assert!(alarm.is_watched());
            for (index, length) in before.iter().enumerate() {
                let mut dropped = pin!(alarm.until(now() + *length * 2));
                let done = tokio::time::sleep(*length);
                tokio::select! {
                    () = done => {}
                    () = &mut dropped => panic!("{index} came due"),
                }
            }
            alarm.until(now() + deadline).await;
        })
        .await;
        now() - began - before.iter().sum::<Duration>()
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_comes_due_when_it_should() {
        let second = Duration::from_secs(1);
        for deadline in [
            second / 100,
            second,
            59 * second,
            60 * second,
            75 * second,
            600 * second,
        ] {
            for before in [
                &[][..],
                &[second; 3],
                &[50 * second; 4],
                &[second / 10, 100 * second],
            ] {
                let took = waits(deadline, before).await;
                let late = took.checked_sub(deadline).expect("not early");
                assert!(late < second / 100, "{deadline:?} after {before:?} took {took:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_the_earlier_comes_first_and_the_later_still_comes() {
        let (alarm, began) = (Arc::new(Alarm::default()), now());
        let at = |seconds| alarm.until(began + Duration::from_secs(seconds));
        let seen = watched(&alarm, async {
            let mut late = pin!(at(9));
            tokio::select! {
                () = &mut late => panic!("the later one"),
                () = at(2) => {}
            }
            let early = (now() - began).as_secs();
            late.await;
            (early, (now() - began).as_secs())
        })
        .await;
        assert_eq!(seen, (2, 9));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_in_the_past_is_over_at_once() {
        let (alarm, began) = (Arc::new(Alarm::default()), now());
        watched(&alarm, alarm.until(began)).await;
        assert!(now() - began < Duration::from_millis(10));
    }
}
