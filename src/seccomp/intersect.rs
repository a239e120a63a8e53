//! Where two sets of conditions both have to hold: a profile's and gosandbox's
//! own.

use super::{Answer, Case, Clause, Condition, Operator, Verdict, Width};

impl Condition {
    /// Whether an argument of this value meets it.
    fn takes(self, value: u64) -> bool {
        self.holds([value; 6])
    }

    /// The bits that are fixed, and what they are.
    fn bits(&self) -> (u64, u64) {
        let (mask, value) = match self.operator {
            Operator::Is(v) => (u64::MAX, v),
            Operator::Masked(mask, v) => (mask, v),
            _ => (0, 0),
        };
        if self.width == Width::Int { (mask & LOW, value & LOW) } else { (mask, value) }
    }

    /// The least and the greatest value that meet it; none may. Of the low half,
    /// where it is of an int.
    fn range(&self) -> Option<(u64, u64)> {
        let most = if self.width == Width::Int { LOW } else { u64::MAX };
        match self.operator {
            Operator::Is(v) => Some((v, v)),
            Operator::Less(v) => Some((0, v.checked_sub(1)?)),
            Operator::AtMost(v) => Some((0, v)),
            Operator::AtLeast(v) => Some((v, most)),
            Operator::More(v) => Some((v.checked_add(1)?, most)),
            Operator::IsNot(_) | Operator::Masked(..) => Some((0, most)),
        }
    }

    /// Whether no argument meets both. `false` also where that takes more thought
    /// than is given here, as between an order and a mask.
    fn excludes(&self, other: &Self) -> bool {
        if self.argument != other.argument {
            return false;
        }
        let ((mask, value), (other_mask, other_value)) = (self.bits(), other.bits());
        if (value ^ other_value) & mask & other_mask != 0 {
            return true;
        }
        // One value, or one low half, is tried.
        let tried = |one: &Self, by: &Self| {
            let known = one.bits().0;
            let needed = if by.width == Width::Int { LOW } else { u64::MAX };
            known & needed == needed && !by.takes(one.bits().1)
        };
        if tried(self, other) || tried(other, self) {
            return true;
        }
        match (self.range(), other.range()) {
            (None, _) | (_, None) => true,
            (Some(one), Some(two)) if self.width == other.width => one.1 < two.0 || two.1 < one.0,
            _ => false,
        }
    }
}

/// The low half of an argument.
const LOW: u64 = 0xffff_ffff;

/// Whether no call meets both; `false` where that is not plain.
pub(super) fn contradict(one: &[Condition], other: &[Condition]) -> bool {
    one.iter().any(|a| other.iter().any(|b| a.excludes(b)))
}

/// What meets a clause of the one and a clause of the other: each with each,
/// without those that nothing meets.
fn intersect(one: &[Clause], other: &[Clause]) -> Vec<Clause> {
    let mut all = Vec::new();
    for a in one {
        for b in other.iter().filter(|b| !contradict(a, b)) {
            let mut clause = a.clone();
            clause.extend(b.iter().filter(|condition| !a.contains(condition)));
            if !all.contains(&clause) {
                all.push(clause);
            }
        }
    }
    all
}

/// The answer to a call that gosandbox answers with `own`, where a profile has
/// these cases, each of which excludes the others, and `last` besides. What the
/// profile allows is answered with `own`.
pub(super) fn both(own: &Verdict, profile: &[Case], last: Answer) -> Verdict {
    let given: Vec<Clause> = profile
        .iter()
        .filter(|case| case.answer == Answer::Allow)
        .flat_map(|case| case.clauses.clone())
        .collect();
    let mut cases: Vec<Case> = own
        .cases
        .iter()
        .map(|case| Case { clauses: intersect(&case.clauses, &given), answer: case.answer })
        .collect();
    cases.push(Case { clauses: given, answer: own.last });
    cases.extend(profile.iter().filter(|case| case.answer != Answer::Allow).cloned());
    verdict_of(cases, last)
}

/// The plainest verdict that gives the same answers.
fn verdict_of(cases: Vec<Case>, mut last: Answer) -> Verdict {
    let mut plain: Vec<Case> = Vec::new();
    for mut case in cases {
        // What is answered already is never asked again.
        case.clauses.retain(|clause| plain.iter().all(|before| !before.clauses.contains(clause)));
        if case.clauses.iter().any(Vec::is_empty) {
            last = case.answer;
            break;
        }
        match plain.last_mut() {
            _ if case.clauses.is_empty() => {}
            Some(before) if before.answer == case.answer => before.clauses.extend(case.clauses),
            _ => plain.push(case),
        }
    }
    while plain.last().is_some_and(|case| case.answer == last) {
        plain.pop();
    }
    Verdict { cases: plain, last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    impl Random {
        fn condition(&mut self) -> Condition {
            let width = if self.below(2) == 0 { Width::Int } else { Width::Long };
            let mut number = || {
                let value = VALUES[self.below(VALUES.len())];
                if width == Width::Int { value & LOW } else { value }
            };
            let (value, mask) = (number(), number());
            let operator = [
                Operator::Is(value),
                Operator::IsNot(value),
                Operator::Masked(mask, value & mask),
                Operator::Less(value),
                Operator::AtMost(value),
                Operator::AtLeast(value),
                Operator::More(value),
            ][self.below(7)];
            Condition { argument: u8::from(self.below(4) == 0), width, operator }
        }

        fn clauses(&mut self) -> Vec<Clause> {
            let many = 1 + self.below(3);
            (0..many).map(|_| (0..=self.below(2)).map(|_| self.condition()).collect()).collect()
        }

        fn answer(&mut self) -> Answer {
            [Answer::Allow, Answer::Errno(22), Answer::Kill, Answer::Errno(38)][self.below(4)]
        }

        fn own(&mut self) -> Verdict {
            let refused = Answer::Refuse(13);
            match self.below(6) {
                0 => Answer::Allow.into(),
                1 => Answer::Ask.into(),
                2 => Answer::Errno(1).into(),
                3 => Verdict::when(self.clauses(), Answer::Allow, refused),
                4 => Verdict::when(self.clauses(), Answer::Allow, Answer::Ask),
                _ => {
                    let mut verdict = Verdict::when(self.clauses(), Answer::Allow, refused);
                    verdict.cases.push(Case { clauses: self.clauses(), answer: Answer::Ask });
                    verdict
                }
            }
        }
    }

    const VALUES: [u64; 9] = [0, 1, 2, 3, LOW, 1 << 32, 1 << 32 | 1, 3 << 32, u64::MAX];

    /// Around all of them.
    fn arguments() -> Vec<u64> {
        VALUES.iter().flat_map(|v| [v.wrapping_sub(1), *v, v.wrapping_add(1)]).collect()
    }

    fn hold(clauses: &[Clause], arguments: [u64; 2]) -> bool {
        clauses.iter().any(|clause| {
            clause
                .iter()
                .all(|condition| condition.takes(arguments[usize::from(condition.argument)]))
        })
    }

    fn answer(verdict: &Verdict, [first, second]: [u64; 2]) -> Answer {
        verdict.answer([first, second, 0, 0, 0, 0])
    }

    /// Nothing meets two conditions that are said to exclude each other, and of those
    /// that nothing meets most are found.
    #[test]
    fn what_is_said_to_contradict_does() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let (mut found, mut missed) = (0, 0);
        for _ in 0..100_000 {
            let (one, other) = (random.condition(), random.condition());
            let met = arguments().iter().any(|&a| one.takes(a) && other.takes(a));
            match (one.excludes(&other), met && one.argument == other.argument) {
                (true, met) => {
                    assert!(!met, "{one:?} {other:?}");
                    found += 1;
                }
                (false, false) if one.argument == other.argument => missed += 1,
                (false, _) => assert_eq!(one.excludes(&other), other.excludes(&one)),
            }
        }
        assert!(found > 10_000 && missed * 4 < found, "{found} {missed}");
    }

    /// What is given is what gosandbox gives, where the profile allows, and what
    /// the profile gives where it does not.
    #[test]
    fn both_hold() {
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let mut several = 0;
        for _ in 0..20_000 {
            let own = random.own();
            let last = [Answer::Errno(1), Answer::Errno(38), Answer::Kill][random.below(3)];
            let mut profile: Vec<Case> = Vec::new();
            for _ in 0..random.below(4) {
                let case = Case { clauses: random.clauses(), answer: random.answer() };
                // As the loader sees to it: one answer once, and none against another.
                let fits = profile.iter().all(|other| {
                    let against = |a: &Clause| other.clauses.iter().all(|b| contradict(a, b));
                    other.answer != case.answer && case.clauses.iter().all(against)
                });
                if fits {
                    profile.push(case);
                }
            }
            several += usize::from(profile.len() > 1);
            let verdict = both(&own, &profile, last);
            for &first in &arguments() {
                for second in VALUES {
                    let arguments = [first, second];
                    let case = profile.iter().find(|case| hold(&case.clauses, arguments));
                    let expected = match case.map_or(last, |case| case.answer) {
                        Answer::Allow => answer(&own, arguments),
                        other => other,
                    };
                    assert_eq!(
                        answer(&verdict, arguments),
                        expected,
                        "{own:?} {profile:?} {last:?} {arguments:x?}"
                    );
                }
            }
        }
        assert!(several > 500, "{several}");
    }
}
