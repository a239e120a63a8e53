/*
 * floor PROGRAM [ARGS]: the kernel's own price of gosandbox's default sandbox.
 *
 * Makes the same namespaces, ids, mounts, init and privilege drop in the fewest calls, each with its arguments written
 * out beforehand: no policy, no checks of the binary, no supervision, no seccomp filter, no Landlock. What gosandbox
 * takes longer than this is its own; what this takes longer than a bare exec is the kernel's. Not a sandbox to rely on.
 *
 *     gcc -O2 -static -o floor floor.c
 *
 * FLOOR_CGROUP=N: descriptor of a cgroup v2 directory to be born in. Exits with the program's status (128+n for a
 * signal), 125 when a step fails. Linux 5.12 (mount_setattr); x86_64 and aarch64.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* glibc's <sys/mount.h> collides with <linux/mount.h> in some releases: the few calls needed of it, by hand. */
int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);
enum { BIND = 4096, PRIVATE_REC = 16384 | 1 << 18, NOSUID = 2, NODEV = 4, NOEXEC = 8, DETACH = 2 };

enum { INSIDE_ID = 1000, HOST_ID = 1879048192 };
#define CA "etc/ssl/certs/ca-certificates.crt"
#define ZONES "usr/share/zoneinfo"
static const char *const DEVICES[] = {"dev/null", "dev/zero", "dev/full", "dev/random", "dev/urandom"};

#define TRY(call) ({ long r_ = (call); if (r_ < 0) fail(#call); r_; })
static _Noreturn void fail(const char *call) { perror(call); _exit(125); }

static void put(const char *path, int flags, const char *text)
{
	int fd = TRY(open(path, flags | O_WRONLY | O_CLOEXEC, 0644));
	TRY(write(fd, text, strlen(text)));
	TRY(close(fd));
}

/* A file to mount something on. mknod is one call where open(O_CREAT) and close are two. */
static void point(const char *path) { TRY(mknod(path, S_IFREG | 0444, 0)); }

static long set_attributes(int dir, int flags, uint64_t set)
{
	struct mount_attr attr = {.attr_set = set};
	return syscall(SYS_mount_setattr, dir, "", AT_EMPTY_PATH | flags, &attr, sizeof attr);
}

/* Branch: the app, pid 2. Its own session; every capability set emptied, then no way to gain any. */
static _Noreturn void app(char **argv)
{
	static char *const env[] = {"PATH=/usr/bin:/bin", "HOME=/tmp", "TMPDIR=/tmp", NULL};
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {{0}};
	TRY(setsid());
	/* Securebits need CAP_SETPCAP, so before capset, which also empties the ambient set. */
	TRY(prctl(PR_SET_SECUREBITS, SECURE_ALL_BITS | SECURE_ALL_LOCKS, 0, 0, 0));
	TRY(syscall(SYS_capset, &head, none));
	TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	TRY(syscall(SYS_close_range, 3, ~0U, 0));
	execve("/app", argv, env);
	fail("execve");
}

/* Branch: init, pid 1 of the new namespaces, all capabilities in the new user namespace, ids not yet mapped. */
static _Noreturn void init(int mapped, char **argv)
{
	uint64_t go;
	struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};

	/* First what needs no mapped id: it overlaps with the parent's writing of the maps. Of these the bounding set,
	 * which takes a call for each capability, is the longest. It ends at the first number that is none: EINVAL. */
	for (int cap = 0; prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0; cap++)
		;
	if (errno != EINVAL)
		fail("prctl(PR_CAPBSET_DROP)");
	/* Not a clone3 flag: the namespace's root would be the parent's cgroup, not the one CLONE_INTO_CGROUP entered. */
	TRY(unshare(CLONE_NEWCGROUP));
	TRY(sethostname("floor", 5));
	int sock = TRY(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
	TRY(ioctl(sock, SIOCSIFFLAGS, &lo));
	/* Private, so that no mount made here is seen outside, nor one made outside later is seen here. */
	TRY(mount(NULL, "/", NULL, PRIVATE_REC, NULL));
	/* Before /tmp is covered: the program may be there. */
	int binary = TRY(syscall(SYS_open_tree, AT_FDCWD, argv[0], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
	TRY(set_attributes(binary, 0, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV));

	/* An unmapped id can create no inode (EOVERFLOW): from here on the maps are needed. */
	TRY(read(mapped, &go, sizeof go));
	TRY(setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID));
	TRY(setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID));
	/* After setresuid, which clears it: the sandbox dies with its supervisor. */
	TRY(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
	TRY(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));

	TRY(mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV | NOEXEC, "mode=755,size=1m"));
	TRY(chdir("/tmp"));
	static const char *const dirs[] = {"proc", "dev", "dev/shm", "tmp", "etc", "etc/ssl", "etc/ssl/certs", "usr", "usr/share", ZONES};
	for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
		TRY(mkdir(dirs[i], 0755));
	put("etc/passwd", O_CREAT, "app:x:1000:1000::/tmp:/sbin/nologin\n");
	put("etc/group", O_CREAT, "app:x:1000:\n");
	put("etc/hosts", O_CREAT, "127.0.0.1 localhost floor\n::1 localhost floor\n");
	put("etc/nsswitch.conf", O_CREAT, "passwd: files\ngroup: files\nhosts: files dns\n");
	put("etc/resolv.conf", O_CREAT, "# no resolver\n");
	TRY(symlink("/proc/self/fd", "dev/fd"));
	TRY(symlink("/proc/self/fd/0", "dev/stdin"));
	TRY(symlink("/proc/self/fd/1", "dev/stdout"));
	TRY(symlink("/proc/self/fd/2", "dev/stderr"));
	point("app");
	point(CA);

	/* Binds keep the flags of their source: nodev is added to all there are before the devices come, the rest to all
	 * there are before those that are written to or executed. One recursive call each, instead of one for each bind. */
	int root = TRY(open(".", O_PATH | O_CLOEXEC));
	if (mount("/" CA, CA, NULL, BIND, NULL) && errno != ENOENT)
		fail(CA);
	if (mount("/" ZONES, ZONES, NULL, BIND, NULL) && errno != ENOENT)
		fail(ZONES);
	TRY(set_attributes(root, AT_RECURSIVE, MOUNT_ATTR_NODEV));
	for (size_t i = 0; i < sizeof DEVICES / sizeof *DEVICES; i++) {
		char source[32] = "/";
		point(DEVICES[i]);
		TRY(mount(strcat(source, DEVICES[i]), DEVICES[i], NULL, BIND, NULL));
	}
	TRY(set_attributes(root, AT_RECURSIVE, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC));
	TRY(syscall(SYS_move_mount, binary, "", AT_FDCWD, "app", MOVE_MOUNT_F_EMPTY_PATH));
	TRY(mount("proc", "proc", "proc", NOSUID | NODEV | NOEXEC, "hidepid=2"));
	TRY(mount("tmpfs", "tmp", "tmpfs", NOSUID | NODEV, "mode=1777,size=64m"));
	TRY(mount("tmpfs", "dev/shm", "tmpfs", NOSUID | NODEV | NOEXEC, "mode=1777,size=16m"));

	/* pivot_root(2), "." and ".": the old root ends up stacked on the new one and is the first to be unmounted. */
	TRY(syscall(SYS_pivot_root, ".", "."));
	TRY(umount2(".", DETACH));
	/* umount takes the working directory out of the tree. */
	TRY(chdir("/"));

	/* vfork and not fork: nothing is copied that exec throws away at once, and there is nothing to do meanwhile. */
	pid_t child = TRY(vfork());
	if (child == 0)
		app(argv);
	for (;;) {
		int status;
		pid_t pid = TRY(wait(&status));
		if (pid == child)
			_exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
	}
}

/* Branch: the supervisor, in the host's namespaces, with the caller's privileges. */
int main(int argc, char **argv)
{
	char path[64], map[64];
	int as_root = geteuid() == 0, pidfd, status;
	const char *cgroup = getenv("FLOOR_CGROUP");
	struct clone_args args = {
		.flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_PIDFD,
		.pidfd = (uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
	};

	if (argc < 2) {
		fprintf(stderr, "usage: floor PROGRAM [ARGS]\n");
		return 125;
	}
	if (cgroup) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = atoi(cgroup);
	}
	if (as_root) /* impossible once setgroups is denied */
		TRY(setgroups(0, NULL));
	int mapped = TRY(eventfd(0, EFD_CLOEXEC));
	pid_t pid = TRY(syscall(SYS_clone3, &args, sizeof args));
	if (pid == 0)
		init(mapped, argv + 1);

	/* Denied first: an unprivileged gid_map is refused otherwise (user_namespaces(7)). */
	static const char *const files[] = {"setgroups", "gid_map", "uid_map"};
	unsigned host[] = {0, as_root ? HOST_ID : getegid(), as_root ? HOST_ID : geteuid()};
	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof path, "/proc/%d/%s", pid, files[i]);
		snprintf(map, sizeof map, i ? "%u %u 1" : "deny", INSIDE_ID, host[i]);
		put(path, 0, map);
	}
	TRY(write(mapped, &(uint64_t){1}, 8));
	TRY(waitpid(pid, &status, 0));
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
