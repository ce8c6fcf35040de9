//! Adapters in the batch: the kernels put one on all of a batch, so a step has as many batches as adapters are asked for.

use super::Worker;
use crate::request::Failure;
use crate::schedule::{JobId, Plan};

impl Worker<'_> {
    /// The plan, apart for each adapter that is asked for in it.
    pub(super) fn by_adapter(&self, plan: &Plan) -> Vec<(Option<usize>, Plan)> {
        let worn = |id: &JobId| {
            self.answers
                .get(id)
                .and_then(|answer| answer.request.request.adapter)
        };
        let all = plan
            .decode
            .iter()
            .chain(plan.prefill.iter().map(|part| &part.job));
        let mut asked: Vec<Option<usize>> = all.map(worn).collect();
        asked.sort_unstable();
        asked.dedup();
        // What is on already comes first: putting one on costs time.
        asked.sort_by_key(|adapter| *adapter != self.adapter);
        let only = |adapter: Option<usize>| Plan {
            decode: plan
                .decode
                .iter()
                .copied()
                .filter(|id| worn(id) == adapter)
                .collect(),
            prefill: plan
                .prefill
                .iter()
                .filter(|part| worn(&part.job) == adapter)
                .cloned()
                .collect(),
            ..Plan::default()
        };
        asked
            .into_iter()
            .map(|adapter| (adapter, only(adapter)))
            .collect()
    }

    /// Puts an adapter on, or takes off what is.
    pub(super) fn wear(&mut self, adapter: Option<usize>) -> Result<(), Failure> {
        if self.adapter == adapter {
            return Ok(());
        }
        let failed = |error: String| Failure::Kernels(format!("the adapter cannot be used: {error}"));
        // One takes the place of another; without one the last is taken off.
        let Some(changed) = adapter
            .or(self.adapter)
            .and_then(|at| self.model.adapters.get(at))
        else {
            return Err(failed("it is not there".to_owned()));
        };
        let mut weights = changed
            .weights
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if adapter.is_some() {
            self.context
                .lora_adapter_set(&mut weights, SCALE)
                .map_err(|error| failed(error.to_string()))?;
        } else {
            self.context
                .lora_adapter_remove(&mut weights)
                .map_err(|error| failed(error.to_string()))?;
        }
        self.adapter = adapter;
        Ok(())
    }
}

/// As strong as it was trained.
const SCALE: f32 = 1.0;
