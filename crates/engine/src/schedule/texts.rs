//! Which texts a model that makes embeddings reads in its next step: whole ones, of several requests together.
//!
//! Pure, as the rest of `schedule`, and fair by the same measure: the tokens that each tenant was served. Such a model
//! reads a text at once or not at all, so a step is as many texts as fit, and a request of thousands of texts is read over
//! many steps, between which others come in. Of one tenant's requests the one that has had least comes first: a question
//! of one line does not wait for an archive that is being indexed.

use std::cmp::Reverse;

use super::tenants::Tenants;
use super::{JobId, Priority, TenantId};

/// So many tokens less a request counts as having had for each step it has been here: those that come later overtake it,
/// but not for ever.
const AGING_TOKENS: u64 = 16;

/// A request that has texts left to read.
#[derive(Debug)]
struct Job {
    id: JobId,
    tenant: TenantId,
    priority: Priority,
    /// Tokens of each text.
    lengths: Vec<usize>,
    /// Texts that were read, or are in the step.
    begun: usize,
    /// Tokens of these.
    read: usize,
    /// The step before which it came.
    since: u64,
}

/// A text in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) job: JobId,
    /// Which of the job's.
    pub(crate) index: usize,
}

/// What there is to read.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    /// As they came.
    jobs: Vec<Job>,
    tenants: Tenants,
    step: u64,
}

impl Texts {
    /// A request arrived, with so many tokens in each of its texts.
    pub(crate) fn submit(&mut self, id: JobId, tenant: TenantId, priority: Priority, lengths: Vec<usize>) {
        self.tenants.enter(tenant);
        self.jobs.push(Job {
            id,
            tenant,
            priority,
            lengths,
            begun: 0,
            read: 0,
            since: self.step,
        });
    }

    /// A request is over: it was read, failed, or nobody waits for it any more. Unknown ones are ignored.
    pub(crate) fn remove(&mut self, id: JobId) {
        if let Some(at) = self.jobs.iter().position(|job| job.id == id) {
            self.tenants.leave(self.jobs.remove(at).tenant);
        }
    }

    /// The texts of the next step: at most so many, and no more tokens than that, unless the first alone has more.
    pub(crate) fn step(&mut self, tokens_max: usize, texts_max: usize) -> Vec<Text> {
        self.step += 1;
        let mut texts = Vec::new();
        let mut room = tokens_max;
        while texts.len() < texts_max {
            let Some(at) = self.next() else { break };
            let job = &mut self.jobs[at];
            let length = job.lengths[job.begun];
            // Nobody overtakes within a step: what is long would wait for ever.
            if length > room && !texts.is_empty() {
                break;
            }
            room = room.saturating_sub(length);
            texts.push(Text {
                job: job.id,
                index: job.begun,
            });
            job.begun += 1;
            job.read += length;
            self.tenants.charge(job.tenant, length);
        }
        texts
    }

    /// The most urgent, of the tenant that was served least, that has had least itself, the first that came.
    fn next(&self) -> Option<usize> {
        let order = |job: &Job| {
            let waited = (self.step - job.since) * AGING_TOKENS;
            (
                Reverse(job.priority),
                self.tenants.served(job.tenant),
                (job.read as u64).saturating_sub(waited),
            )
        };
        (0..self.jobs.len())
            .filter(|&at| self.jobs[at].begun < self.jobs[at].lengths.len())
            .min_by_key(|&at| order(&self.jobs[at]))
    }

    /// Tokens that are not read yet.
    pub(crate) fn tokens_ahead(&self) -> usize {
        let left = |job: &Job| job.lengths[job.begun..].iter().sum::<usize>();
        self.jobs.iter().map(left).sum()
    }

    /// Requests of which nothing was read yet.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = JobId> {
        self.jobs.iter().filter(|job| job.begun == 0).map(|job| job.id)
    }

    /// Requests of which something was read.
    pub(crate) fn running(&self) -> usize {
        self.jobs.iter().filter(|job| job.begun > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 100;

    fn ids(texts: &[Text]) -> Vec<JobId> {
        texts.iter().map(|text| text.job).collect()
    }

    /// Steps until all is read, and the step in which each request was whole.
    fn run(texts: &mut Texts, jobs: &[(JobId, usize)]) -> Vec<(JobId, usize)> {
        let mut left: Vec<(JobId, usize)> = jobs.to_vec();
        let mut ended = Vec::new();
        for step in 1.. {
            let read = texts.step(ROOM, 8);
            if read.is_empty() {
                break;
            }
            for text in read {
                let one = left.iter_mut().find(|one| one.0 == text.job).unwrap();
                one.1 -= 1;
                if one.1 == 0 {
                    ended.push((one.0, step));
                    texts.remove(one.0);
                }
            }
        }
        ended
    }

    #[test]
    fn a_step_is_of_whole_texts_of_several_requests() {
        let mut texts = Texts::default();
        texts.submit(1, 1, Priority::Normal, vec![60, 30, 50]);
        texts.submit(2, 2, Priority::Normal, vec![10, 10]);
        let first = texts.step(ROOM, 8);
        assert_eq!(ids(&first), [1, 2, 2], "30 more would be too many");
        assert_eq!(first[2], Text { job: 2, index: 1 });
        assert_eq!(texts.tokens_ahead(), 80);
        texts.remove(2);
        assert_eq!(ids(&texts.step(ROOM, 8)), [1, 1]);
        assert!(texts.step(ROOM, 8).is_empty());
        assert_eq!((texts.running(), texts.waiting().count()), (1, 0));
    }

    #[test]
    fn a_text_of_more_than_a_step_is_read_alone() {
        let mut texts = Texts::default();
        texts.submit(1, 1, Priority::Normal, vec![5 * ROOM, 1]);
        assert_eq!(texts.step(ROOM, 8).len(), 1);
        assert_eq!(texts.step(ROOM, 8).len(), 1);
        let many = vec![1; 20];
        texts.submit(2, 1, Priority::Normal, many);
        assert_eq!(texts.step(ROOM, 8).len(), 8, "no more texts than that");
    }

    #[test]
    fn who_brings_an_archive_holds_nobody_up() {
        let mut texts = Texts::default();
        texts.submit(1, 1, Priority::Normal, vec![25; 400]);
        texts.step(ROOM, 8);
        texts.submit(2, 2, Priority::Normal, vec![25]);
        texts.submit(3, 1, Priority::Normal, vec![25]);
        let ended = run(&mut texts, &[(1, 396), (2, 1), (3, 1)]);
        assert_eq!(
            (ended[0], ended[1].0),
            ((2, 1), 3),
            "another tenant's, and its own"
        );
        assert!(ended[1].1 <= 2, "{ended:?}");
    }

    #[test]
    fn tenants_share_whatever_they_bring() {
        let mut texts = Texts::default();
        for id in 0..9 {
            texts.submit(id, 1, Priority::Normal, vec![50; 100]);
        }
        texts.submit(9, 2, Priority::Normal, vec![50; 100]);
        let mut of_the_one = 0;
        for _ in 0..100 {
            of_the_one += ids(&texts.step(ROOM, 8)).iter().filter(|id| **id == 9).count();
        }
        assert_eq!(of_the_one, 100, "half of two hundred");
    }

    #[test]
    fn the_urgent_go_first_and_the_old_are_not_starved() {
        let mut texts = Texts::default();
        texts.submit(1, 1, Priority::Normal, vec![100; 3]);
        texts.submit(2, 1, Priority::High, vec![100]);
        assert_eq!(ids(&texts.step(ROOM, 8)), [2]);
        texts.remove(2);
        let mut steps = 0;
        // One that is new comes before each step.
        for id in 3.. {
            texts.submit(id, 1, Priority::Normal, vec![100]);
            let read = ids(&texts.step(ROOM, 8));
            steps += 1;
            if read == [1] && texts.jobs[0].begun == 3 {
                break;
            }
            if read != [1] {
                texts.remove(read[0]);
            }
            assert!(steps < 100, "it waits for ever");
        }
    }
}
