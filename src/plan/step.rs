//! The set-up steps, in the order they run. One enum for the child's sequence,
//! for what `gosandbox plan` prints and for error messages, so that they cannot
//! drift apart.

/// Which process takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// gosandbox itself, in the host's namespaces.
    Supervisor,
    /// Pid 1 of the tenant's namespaces, before the tenant's code exists.
    Init,
    /// The process that becomes the tenant's binary.
    App,
    /// The tenant's way in and out, in the host's network. It runs beside init
    /// and app.
    Broker,
}

impl Actor {
    /// As it is printed.
    pub fn label(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Init => "init",
            Self::App => "app",
            Self::Broker => "broker",
        }
    }
}

macro_rules! steps {
    ($( $actor:ident { $( $(#[$doc:meta])* $step:ident = $label:literal ; )* } )*) => {
        /// One step. The derived order is the order in which they run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Step { $( $( $(#[$doc])* $step, )* )* }

        impl Step {
            /// Every step, in order.
            pub const ALL: &[Step] = &[ $( $( Step::$step, )* )* ];

            /// As it is printed, and named in error messages.
            pub fn label(self) -> &'static str {
                match self { $( $( Step::$step => $label, )* )* }
            }

            /// Which process takes it.
            pub fn actor(self) -> Actor {
                match self { $( $( Step::$step => Actor::$actor, )* )* }
            }
        }
    };
}

steps! {
    Supervisor {
        /// Open the binary that was checked.
        Open = "open binary";
        /// Lock the tenant's state file: one supervisor a tenant.
        State = "state";
        /// Enter the network namespace that the policy names. Before sockets are
        /// made, which are to be of it and of no other.
        Network = "network namespace";
        /// Open, or take over, the listening sockets.
        Listen = "listen";
        /// Make the cgroups and write the limits.
        Cgroup = "cgroup";
        /// Open what is bound, while the supervisor may still read everything.
        Sources = "bind source";
        /// Give up supplementary groups: after clone, with setgroups denied,
        /// it is impossible.
        Groups = "drop groups";
        /// Make init in new namespaces, born in its cgroup.
        Clone = "clone";
        /// Write the id maps, which init waits for.
        IdMap = "id map";
        /// Make the broker, which waits for what the filter asks about.
        Broker = "broker";
        /// Have the tenant's network made, while init builds the root: it takes
        /// about as long.
        NewNetwork = "new network";
        /// Bring `lo` up in it.
        Loopback = "loopback";
    }
    Init {
        /// Clone what is bound, where the supervisor had not the privilege to.
        /// Before the new root is mounted, which may hide it.
        Trees = "bind source tree";
        /// Cut propagation, in both directions, before the first mount.
        Propagation = "propagation";
        /// The cgroup namespace. Not part of clone: there it would be rooted at
        /// the supervisor's cgroup.
        CgroupNamespace = "cgroup namespace";
        /// The host name.
        Hostname = "host name";
        /// No capability can ever be gained again.
        BoundingSet = "bounding set";
        /// Wait until the id maps are there; nothing above needs one.
        AwaitIdMap = "await id map";
        /// Become the one uid and gid of the namespace. The capabilities in it
        /// stay, because it has no uid 0 to lose them by.
        Ids = "ids";
        /// Die with the supervisor. After the change of ids, which clears it.
        DeathSignal = "death signal";
        /// A session keyring of its own, as the tenant.
        Keyring = "keyring";
        /// An empty tmpfs for the root.
        Rootfs = "root file system";
        /// Directories, small files of /etc, links.
        Files = "file";
        /// The harmless device nodes.
        Devices = "device";
        /// A /proc of the new pid namespace, read-only.
        Proc = "proc";
        /// Cover what /proc tells about the host.
        Masks = "mask";
        /// /tmp and /dev/shm.
        Scratch = "scratch";
        /// Host paths that are seen inside.
        Binds = "bind mount";
        /// The binary, at last, from the descriptor that was checked.
        Binary = "binary";
        /// Make the new root the root, and let the old one go.
        PivotRoot = "pivot root";
        /// Nothing more is made in the root.
        ReadOnlyRoot = "read-only root";
        /// Enter the network that was made meanwhile. Up to here init is in the
        /// host's, of which it uses nothing.
        JoinNetwork = "join network";
        /// Empty every capability set and lock the securebits: for init and,
        /// by inheritance, for the app. Nothing after it needs one.
        Capabilities = "capabilities";
        /// No exec gives privileges any more; for both again.
        NoNewPrivs = "no_new_privs";
        /// Wait until the broker has what it needs: without it nothing starts.
        AwaitBroker = "await broker";
        /// Make the app's process.
        Fork = "fork";
        /// Give the listener of the app's filter to the broker.
        Handover = "hand over";
        /// Init closes what it holds and gets its own filter, as soon as the
        /// app runs.
        InitLock = "lock init";
    }
    App {
        /// Its own session: no controlling terminal, no shared process group.
        Session = "session";
        /// Resource limits.
        Limits = "rlimits";
        /// stdio, the listening sockets, and nothing else.
        Descriptors = "descriptors";
        /// The working directory, as the tenant.
        Workdir = "working directory";
        /// The second wall, Landlock, once nothing more is opened that is not the
        /// tenant's. Before the filter, which gives nobody a ruleset.
        Landlock = "landlock";
        /// The allowlist, last: the steps before need more than it lets through.
        Filter = "seccomp filter";
        /// Become the tenant's binary.
        Exec = "exec";
    }
    Broker {
        /// Join the tenant's user namespace: all capabilities there, and none
        /// over the host any more.
        BrokerNamespace = "join namespace";
        /// Become the tenant's one uid and gid, die with the supervisor.
        BrokerIds = "broker ids";
        /// Open /proc, and the directories of the unix sockets that may be
        /// connected to, as the tenant.
        BrokerSources = "egress socket";
        /// Wait for the listener from init.
        BrokerAwait = "await listener";
        /// Make the tenant's root its own.
        BrokerRoot = "broker root";
        /// Close what it does not need, keep CAP_SYS_PTRACE over the tenant and
        /// no other capability, and get its filter.
        BrokerLock = "lock broker";
    }
}

impl Step {
    /// The step of this number, as it comes over the report pipe.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_in_order_and_are_found_by_number() {
        for (number, step) in Step::ALL.iter().enumerate() {
            assert_eq!(*step as usize, number);
            assert_eq!(Step::from_number(u8::try_from(number).unwrap()), Some(*step));
        }
        assert_eq!(Step::from_number(u8::try_from(Step::ALL.len()).unwrap()), None);
        assert!(Step::ALL.is_sorted());
    }

    #[test]
    fn no_actor_comes_back() {
        let mut actors: Vec<_> = Step::ALL.iter().map(|s| s.actor()).collect();
        actors.dedup();
        assert_eq!(actors, [Actor::Supervisor, Actor::Init, Actor::App, Actor::Broker]);
    }
}
