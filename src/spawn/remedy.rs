//! What to do about a step that failed: one table, keyed by step and errno.

use nix::errno::Errno;

use crate::plan::Step;

/// The remedy for `step` having failed with `errno`, where one is known to help.
pub fn remedy(step: Step, errno: Errno) -> Option<&'static str> {
    Some(match (step, errno) {
        (Step::Listen, Errno::EADDRINUSE) => {
            "another process listens there: ss -ltnpx shows which; stop it or choose another address"
        }
        (Step::Listen, Errno::EADDRNOTAVAIL) => {
            "this machine has no such address: ip addr shows which it has"
        }
        (Step::Listen, Errno::EACCES | Errno::EPERM) => {
            "a port below 1024, or a directory, needs root: let systemd open the socket, or choose another"
        }
        (Step::Listen, Errno::ENOENT) => "create the directory of the socket first",
        (Step::Network, Errno::ENOENT) => "make it first: ip netns add",
        (Step::Network, Errno::EINVAL) => "it is no network namespace: ip netns list shows those",
        (Step::Sources, Errno::ELOOP) => {
            "a symbolic link is in the path: write the path it leads to"
        }
        (Step::Sources, Errno::ENOENT) => "create it, or mend the path",
        (Step::Sources, Errno::EACCES) => {
            "gosandbox itself may not reach it: check the directories above"
        }
        (Step::Sources, Errno::ENODEV) => {
            "it is not the device it should be: recreate it with mknod"
        }
        (Step::Clone, Errno::ENOSPC | Errno::EUSERS) => {
            "user namespaces are used up or switched off: raise user.max_user_namespaces with sysctl"
        }
        (Step::Clone, Errno::EPERM) => {
            "user namespaces are not for unprivileged users here: see kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns, or run as root"
        }
        (Step::Clone, Errno::EAGAIN) => {
            "too many processes: see ulimit -u and the pids.max of the cgroup above"
        }
        (Step::Clone, Errno::EINVAL | Errno::ENOSYS) => {
            "this kernel is too old or lacks a namespace: 5.14 at least; gosandbox check says more"
        }
        (Step::Clone, Errno::EBUSY) => {
            "the cgroup has controllers enabled for children: something else manages it"
        }
        (Step::NewNetwork, Errno::ENOSPC | Errno::EUSERS) => {
            "network namespaces are used up or switched off: raise user.max_net_namespaces with sysctl"
        }
        (Step::NewNetwork, Errno::ECHILD) => {
            "what makes it was killed: a SystemCallFilter= or seccomp profile around gosandbox has to let setns and unshare through"
        }
        (Step::NewNetwork | Step::Handover, Errno::ETOOMANYREFS) => {
            "programs of this user have too many descriptors under way to each other: raise LimitNOFILE= or ulimit -Hn, or end them"
        }
        (Step::NewNetwork, Errno::EINVAL) => {
            "this kernel lacks CONFIG_NET_NS: --network host does without"
        }
        (Step::IdMap, Errno::EPERM) => {
            "the id maps may not be written: inside a container, give it CAP_SETUID and CAP_SETGID; on Ubuntu, an AppArmor profile with userns"
        }
        (
            Step::Trees
            | Step::Hostname
            | Step::Propagation
            | Step::Rootfs
            | Step::NewNetwork
            | Step::JoinNetwork,
            Errno::EPERM | Errno::EACCES,
        ) => {
            "capabilities in a new user namespace are taken away here: kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with userns"
        }
        (Step::Trees, Errno::ESTALE) => "it was replaced while it was being opened: start again",
        (Step::Proc, Errno::EPERM) => {
            "/proc of this system is partly covered, so the kernel refuses a fresh one: remove ProtectKernelTunables=, ProtectKernelLogs= and the like, or unmask the container's /proc"
        }
        (Step::Binds, Errno::ENOENT) => "its target lies in another bind: create it there",
        (Step::Binds, Errno::ENOTDIR | Errno::EISDIR) => {
            "a file can only be bound over a file and a directory over a directory"
        }
        (Step::Limits, Errno::EPERM) => {
            "the hard limit here is lower: raise LimitNOFILE= of the unit or ulimit -Hn"
        }
        (Step::Workdir, Errno::ENOENT) => "process.workdir is a path inside: create it by a bind",
        (Step::Workdir, Errno::EACCES) => "the tenant may not enter it: check owner and mode",
        (Step::Landlock, Errno::E2BIG) => {
            "gosandbox is in sixteen Landlock domains itself, which is the most: start it outside of one"
        }
        (Step::Landlock, Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => {
            "a seccomp profile around gosandbox has to let the three calls of Landlock through, or accept what is missing with --require landlock=best-effort"
        }
        (Step::Filter, Errno::EINVAL | Errno::ENOSYS) => {
            "this kernel lacks CONFIG_SECCOMP_FILTER, or is older than 5.19, which a broker needs: network = \"host\" with syscalls.on_deny = \"errno\" does without"
        }
        (Step::BrokerSources, Errno::ELOOP) => {
            "a symbolic link is in the path: write the path it leads to"
        }
        (Step::BrokerSources, Errno::ENOENT) => {
            "the directory of the socket has to be there when the tenant starts"
        }
        (Step::BrokerSources, Errno::EACCES) => {
            "the tenant's own id may not enter the directory: chmod o+x it, or its group"
        }
        (Step::Exec, Errno::EACCES) => {
            "the tenant may not execute it: chmod a+rx; a noexec file system stays noexec"
        }
        (Step::Exec, Errno::ENOENT) => {
            "its interpreter is not inside: see what is bound over its directory, or build it static with CGO_ENABLED=0"
        }
        (Step::Exec, Errno::ENOEXEC) => "not a binary for this machine",
        (Step::Cgroup, Errno::EACCES | Errno::EPERM | Errno::EROFS) => {
            "the cgroup is not ours to divide: a unit needs Delegate=yes"
        }
        (Step::Cgroup, Errno::EBUSY) => {
            "other processes sit in the cgroup that is to be divided: start gosandbox in one of its own"
        }
        (Step::Cgroup, Errno::ENOENT) => {
            "its controller is not enabled: see cgroup.subtree_control above it"
        }
        (Step::Cgroup, Errno::ENOSPC | Errno::EAGAIN) => {
            "too many cgroups: see cgroup.max.descendants above it"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawn::StartError;

    /// Every remedy is reached by the errno that the kernel gives in that case,
    /// and the sentence holds tenant, step, object, cause and remedy.
    #[test]
    fn the_sentence() {
        let tenant = "acme".parse().unwrap();
        let error = StartError::new(&tenant, Step::Proc, "/proc", Errno::EPERM);
        assert_eq!(
            error.to_string(),
            "tenant acme: proc: /proc: Operation not permitted (/proc of this system is partly \
             covered, so the kernel refuses a fresh one: remove ProtectKernelTunables=, \
             ProtectKernelLogs= and the like, or unmask the container's /proc)"
        );
        let error = StartError::new(&tenant, Step::Hostname, "", Errno::EIO);
        assert_eq!(error.to_string(), "tenant acme: host name: Input/output error");
    }

    /// A remedy tells somebody to do something; one that only restates the
    /// errno is none. None ends in a full stop, and none is for every errno.
    #[test]
    fn remedies_are_for_certain_causes() {
        let errnos = [
            Errno::EPERM,
            Errno::EACCES,
            Errno::ENOENT,
            Errno::EINVAL,
            Errno::ENOSPC,
            Errno::EBUSY,
            Errno::EADDRINUSE,
            Errno::ENOSYS,
            Errno::EIO,
        ];
        let mut found = 0;
        for &step in Step::ALL {
            assert_eq!(
                remedy(step, Errno::EIO),
                None,
                "a broken disk has no remedy here: {step:?}"
            );
            for text in errnos.iter().filter_map(|&errno| remedy(step, errno)) {
                found += 1;
                assert!(!text.ends_with('.') && text.len() > 20, "{text}");
            }
        }
        assert!(found > 20);
    }
}
