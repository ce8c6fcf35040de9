//! The script of a fake site: what an image and the instances made from it do.
//!
//! Progress is counted in observations, not in time: whoever looks often enough sees the end. A site announces a
//! change after every step that is not the last, so a controller that follows the news gets there without a timer.

use tram_site::EndCause;

/// What happens with one image reference.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Behaviour {
    /// How the image becomes ready.
    pub image: ImageBehaviour,
    /// What an instance of it does.
    pub life: Life,
    /// Observations an instance stays in `Stopping` after it was told to stop.
    pub stop_observations: u32,
}

/// How an image becomes ready.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageBehaviour {
    /// After it was asked for so many times beyond the first; 0 is at once.
    ReadyAfter(u32),
    /// Always on its way.
    PullsForever,
    /// It cannot be had.
    Fails {
        /// For the user.
        message: String,
        /// Whether trying again may help.
        retryable: bool,
    },
}

impl Default for ImageBehaviour {
    fn default() -> Self {
        Self::ReadyAfter(0)
    }
}

/// What an instance does once it is started.
#[derive(Debug, Clone, PartialEq)]
pub enum Life {
    /// Healthy after so many observations; 0 is at once. Stays so.
    HealthyAfter(u32),
    /// Runs, and its checks never pass.
    NeverHealthy,
    /// Runs, its checks pass for so many observations, then fail for ever.
    SickensAfter(u32),
    /// Ends for `cause` after so many observations without ever being healthy.
    EndsUnhealthy {
        /// Observations before the end.
        after: u32,
        /// Why.
        cause: EndCause,
    },
    /// Is healthy for so many observations, then ends for `cause`.
    EndsHealthy {
        /// Observations before the end.
        after: u32,
        /// Why.
        cause: EndCause,
    },
    /// The order to start is refused.
    Refused {
        /// For the user.
        message: String,
    },
    /// The order to start fails for now.
    Unavailable,
}

impl Default for Life {
    fn default() -> Self {
        Self::HealthyAfter(0)
    }
}

impl Behaviour {
    /// An image that is there and a program that is healthy at once.
    #[must_use]
    pub fn healthy() -> Self {
        Self::default()
    }

    /// A program that leaves with `code` as soon as it is looked at.
    #[must_use]
    pub fn crashes(code: i32) -> Self {
        Self::living(Life::EndsUnhealthy {
            after: 1,
            cause: EndCause::Exited { code },
        })
    }

    /// A program that never passes its checks.
    #[must_use]
    pub fn hangs() -> Self {
        Self::living(Life::NeverHealthy)
    }

    /// A program that wants more memory than it may have.
    #[must_use]
    pub fn eats_memory() -> Self {
        Self::living(Life::EndsUnhealthy {
            after: 1,
            cause: EndCause::OutOfMemory {
                limit_bytes: 256 * tram_types::units::MIB,
            },
        })
    }

    /// An image that is not there.
    #[must_use]
    pub fn missing_image(message: &str) -> Self {
        Self {
            image: ImageBehaviour::Fails {
                message: message.to_owned(),
                retryable: false,
            },
            ..Self::default()
        }
    }

    /// An image that is there and a program with this life.
    #[must_use]
    pub fn living(life: Life) -> Self {
        Self {
            life,
            ..Self::default()
        }
    }
}
