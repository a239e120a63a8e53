//! What may become code: the two choices of `[process]`, laid over the rules.

use super::{Answer, Case, Rules, Verdict, conditions, intersect, libc_errno};
use crate::policy::{NetworkMode, Permit};

impl Rules {
    /// Takes away what `write_execute` and `memfd_execute` deny; never gives out a
    /// call that the policy does not.
    ///
    /// # Errors
    /// What is denied could be had by way of another call that the policy allows.
    pub fn keep_code(mut self, write_execute: Permit, memfd: Permit) -> Result<Self, String> {
        let given = |rules: &Self, name| rules.get(name).is_some_and(Verdict::gives);
        if memfd == Permit::Allow && given(&self, "memfd_create") {
            let own = conditions::verdict("memfd_create", &NetworkMode::Private);
            if self.get("memfd_create") != Some(&own) {
                return Err(
                    "memfd_create: the profile lets through some of its arguments only, and \
                     process.memfd_execute = \"allow\" all of them (leave one of them out)"
                        .to_owned(),
                );
            }
            self.set("memfd_create", Answer::Allow.into());
        }
        if write_execute == Permit::Allow {
            return Ok(self);
        }
        if given(&self, "memfd_create") {
            if !self.watched {
                return Err("memfd_create: what is written into its file can be mapped as code, \
                     which process.write_execute = \"deny\" rules out (leave one of them out)"
                    .to_owned());
            }
            self.set("memfd_create", Answer::Refuse(libc_errno::EPERM).into());
        }
        for name in ["mmap", "mprotect", "pkey_mprotect", "shmat"] {
            let Some(verdict) = self.get(name).filter(|verdict| verdict.gives()) else { continue };
            // A profile may have conditions of its own, and then both hold.
            let Verdict { mut cases, last } = verdict.clone();
            if last == Answer::Allow {
                cases.push(Case { clauses: vec![Vec::new()], answer: last });
            }
            let own = conditions::write_or_execute(name);
            self.set(name, intersect::both(&own, &cases, last));
        }
        Ok(self)
    }
}
