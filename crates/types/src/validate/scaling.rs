//! How many instances, and what decides it.

use super::{Check, DELAY_MAX_SECONDS, SCALE_MAX};
use crate::status::DefinitionType;

/// The kinds of targets, each at most once.
const KINDS: [&str; 6] = [
    "average_cpu",
    "average_mem",
    "requests_per_second",
    "concurrent_requests",
    "requests_response_time",
    "sleep_idle_delay",
];

impl Check<'_> {
    pub(super) fn scaling(&mut self) {
        let definition = self.definition;
        if !self.bounded("scalings", definition.scalings.len()) {
            return;
        }
        for (index, scaling) in definition.scalings.iter().enumerate() {
            let at = |member: &str| format!("scalings.{index}.{member}");
            if !(0..=SCALE_MAX).contains(&scaling.min) {
                self.wrong(at("min"), format!("must be between 0 and {SCALE_MAX}"));
            }
            if !(0..=SCALE_MAX).contains(&scaling.max) {
                self.wrong(at("max"), format!("must be between 0 and {SCALE_MAX}"));
            }
            if scaling.min > scaling.max {
                self.wrong(at("max"), format!("must not be below `min` ({})", scaling.min));
            }
            let worker = definition.r#type == DefinitionType::Worker;
            if worker && scaling.min == 0 {
                self.wrong(
                    at("min"),
                    "a worker receives no requests that could wake it: use 1 or more",
                );
            }
            if !self.bounded(&at("targets"), scaling.targets.len()) {
                continue;
            }
            let mut scales_on_load = false;
            let mut kinds = [false; 6];
            for (number, target) in scaling.targets.iter().enumerate() {
                let at = |member: &str| format!("scalings.{index}.targets.{number}.{member}");
                let set = [
                    target.average_cpu.is_some(),
                    target.average_mem.is_some(),
                    target.requests_per_second.is_some(),
                    target.concurrent_requests.is_some(),
                    target.requests_response_time.is_some(),
                    target.sleep_idle_delay.is_some(),
                ];
                if set.iter().filter(|given| **given).count() != 1 {
                    self.wrong(
                        format!("scalings.{index}.targets.{number}"),
                        "must set exactly one kind of target",
                    );
                }
                for (name, (given, before)) in KINDS.into_iter().zip(set.into_iter().zip(&mut kinds)) {
                    if given && *before {
                        self.wrong(
                            at(name),
                            "contradicts another target of the same kind: keep one of them",
                        );
                    }
                    *before |= given;
                }
                for (name, value, most) in [
                    ("average_cpu", &target.average_cpu, 100),
                    ("average_mem", &target.average_mem, 100),
                    ("requests_per_second", &target.requests_per_second, i64::MAX),
                    ("concurrent_requests", &target.concurrent_requests, i64::MAX),
                ] {
                    if let Some(value) = value {
                        scales_on_load = true;
                        if !(1..=most).contains(&value.value) {
                            let bound = if most == 100 {
                                "between 1 and 100"
                            } else {
                                "1 or more"
                            };
                            self.wrong(at(&format!("{name}.value")), format!("must be {bound}"));
                        }
                    }
                }
                if let Some(time) = &target.requests_response_time {
                    scales_on_load = true;
                    if time.value < 1 {
                        self.wrong(
                            at("requests_response_time.value"),
                            "must be 1 millisecond or more",
                        );
                    }
                    if !(0..=100).contains(&time.quantile) {
                        self.wrong(at("requests_response_time.quantile"), "must be between 0 and 100");
                    }
                }
                for (name, given) in [
                    ("requests_per_second", target.requests_per_second.is_some()),
                    ("concurrent_requests", target.concurrent_requests.is_some()),
                    ("requests_response_time", target.requests_response_time.is_some()),
                ] {
                    if worker && given {
                        self.wrong(
                            at(name),
                            "a worker receives no requests to scale on: use `average_cpu` or `average_mem`",
                        );
                    }
                }
                if let Some(delay) = &target.sleep_idle_delay {
                    for (name, seconds) in [
                        ("value", delay.value),
                        ("deep_sleep_value", delay.deep_sleep_value),
                        ("light_sleep_value", delay.light_sleep_value),
                    ] {
                        if !(0..=DELAY_MAX_SECONDS).contains(&seconds) {
                            self.wrong(
                                at(&format!("sleep_idle_delay.{name}")),
                                format!("must be between 0 and {DELAY_MAX_SECONDS} seconds"),
                            );
                        }
                    }
                    let deep = if delay.deep_sleep_value > 0 {
                        delay.deep_sleep_value
                    } else {
                        delay.value
                    };
                    if deep > 0 && delay.light_sleep_value > deep {
                        self.wrong(
                            at("sleep_idle_delay.light_sleep_value"),
                            "must not be longer than the delay of deep sleep",
                        );
                    }
                }
            }
            if scaling.max > 1 && scaling.min != scaling.max && !scales_on_load {
                self.wrong(
                    at("targets"),
                    "needs a target to scale on (for example `concurrent_requests`) when `min` and `max` differ",
                );
            }
            self.scopes(&format!("scalings.{index}.scopes"), &scaling.scopes);
        }
    }
}
