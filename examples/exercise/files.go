package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"
)

func files() error {
	dir, err := os.MkdirTemp("", "exercise-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	name, renamed := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	fd := int(file.Fd())
	text := bytes.Repeat([]byte("exercise\n"), 1000)
	back := make([]byte, 8)
	err = firstError(
		func() error { _, err := file.Write(text); return step("write", err) },
		func() error { return step("sync", file.Sync()) },
		func() error { return step("fdatasync", syscall.Fdatasync(fd)) },
		func() error { return step("fallocate", ignore(syscall.Fallocate(fd, 0, 0, 1<<16), syscall.EOPNOTSUPP)) },
		func() error { _, err := file.ReadAt(back, 9); return step("read at", err) },
		func() error { _, err := file.WriteAt([]byte("EXERCISE"), 9); return step("write at", err) },
		func() error { _, err := file.Seek(0, io.SeekEnd); return step("seek", err) },
		func() error { return step("truncate", file.Truncate(4096)) },
		func() error { return step("chmod", file.Chmod(0o600)) },
		func() error { return step("chmod by name", os.Chmod(name, 0o640)) },
		func() error { return step("chown to itself", os.Chown(name, os.Getuid(), os.Getgid())) },
		func() error { return step("times", os.Chtimes(name, time.Now(), time.Unix(1000000000, 0))) },
		func() error { return step("flock", syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB)) },
		func() error { return step("unlock", syscall.Flock(fd, syscall.LOCK_UN)) },
		func() error {
			// What SQLite and other databases do.
			lock := syscall.Flock_t{Type: syscall.F_WRLCK, Len: 100}
			if err := syscall.FcntlFlock(uintptr(fd), syscall.F_SETLK, &lock); err != nil {
				return step("lock of a range", err)
			}
			const setOpenFileLock = 37
			lock = syscall.Flock_t{Type: syscall.F_WRLCK, Start: 200, Len: 100}
			return step("lock of an open file", syscall.FcntlFlock(uintptr(fd), setOpenFileLock, &lock))
		},
		func() error {
			shared, err := syscall.Mmap(fd, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
			if err != nil {
				return step("mmap", err)
			}
			copy(shared, "MAPPED")
			_, _, errno := syscall.Syscall(syscall.SYS_MSYNC, uintptr(unsafe.Pointer(&shared[0])), 4096, syscall.MS_SYNC)
			if errno != 0 {
				return step("msync", errno)
			}
			return step("munmap", syscall.Munmap(shared))
		},
		func() error { return step("rename", os.Rename(name, renamed)) },
		func() error { return step("symlink", os.Symlink("b", name)) },
		func() error { _, err := os.Readlink(name); return step("readlink", err) },
		func() error { return step("link", os.Link(renamed, filepath.Join(dir, "c"))) },
		func() error { _, err := os.Stat(name); return step("stat", err) },
		func() error { _, err := os.Lstat(name); return step("lstat", err) },
		func() error {
			read, err := os.ReadFile(name)
			if err == nil && !bytes.HasPrefix(read, []byte("MAPPED")) {
				err = errors.New("what was mapped is not in the file")
			}
			return step("read", err)
		},
		func() error { return step("mkdir", os.MkdirAll(filepath.Join(dir, "d", "e"), 0o755)) },
		func() error {
			entries, err := os.ReadDir(dir)
			if err == nil && len(entries) != 4 {
				err = fmt.Errorf("%d entries instead of 4", len(entries))
			}
			return step("readdir", err)
		},
		func() error { return step("sync of a directory", syncDir(dir)) },
		func() error { return step("access", syscall.Access(dir, 7)) },
		func() error { return step("mkfifo", syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600)) },
		func() error {
			var stat syscall.Statfs_t
			return step("statfs", syscall.Statfs(dir, &stat))
		},
		func() error { return step("chdir", inDirectory(dir)) },
	)
	if err != nil {
		return err
	}
	return step("remove", os.RemoveAll(dir))
}

func ignore(err, which error) error {
	if errors.Is(err, which) {
		return nil
	}
	return err
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func inDirectory(path string) error {
	old, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := os.Chdir(path); err != nil {
		return err
	}
	_, err = os.Stat("b")
	if back := os.Chdir(old); err == nil {
		err = back
	}
	return err
}

// copies goes the ways by which io.Copy lets the kernel copy: copy_file_range between files, splice from a pipe,
// sendfile to a socket.
func copies() error {
	dir, err := os.MkdirTemp("", "exercise-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	from, err := os.Create(filepath.Join(dir, "from"))
	if err != nil {
		return err
	}
	defer from.Close()
	const size = 1 << 20
	if _, err := from.Write(make([]byte, size)); err != nil {
		return err
	}
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return err
	}
	to, err := os.Create(filepath.Join(dir, "to"))
	if err != nil {
		return err
	}
	defer to.Close()
	if n, err := io.Copy(to, from); err != nil || n != size {
		return fmt.Errorf("between files: %d bytes, %v", n, err)
	}

	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	go func() {
		w.Write(make([]byte, size))
		w.Close()
	}()
	if n, err := io.Copy(to, r); err != nil || n != size {
		return fmt.Errorf("from a pipe: %d bytes, %v", n, err)
	}

	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return step("socketpair", err)
	}
	defer syscall.Close(pair[0])
	defer syscall.Close(pair[1])
	var offset int64
	if _, err := syscall.Sendfile(pair[0], int(from.Fd()), &offset, 4096); err != nil {
		return step("sendfile", err)
	}
	p := make([]int, 2)
	if err := syscall.Pipe2(p, syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return step("pipe2", err)
	}
	defer syscall.Close(p[0])
	defer syscall.Close(p[1])
	const nonBlocking = 2
	if _, err := syscall.Splice(pair[1], nil, p[1], nil, 4096, nonBlocking); err != nil {
		return step("splice", err)
	}
	return nil
}

func inotify() error {
	dir, err := os.MkdirTemp("", "exercise-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return err
	}
	watcher := os.NewFile(uintptr(fd), "inotify")
	defer watcher.Close()
	watch, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_CREATE|syscall.IN_DELETE)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err != nil {
		return err
	}
	watcher.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := watcher.Read(make([]byte, 4096)); err != nil {
		return err
	}
	_, err = syscall.InotifyRmWatch(fd, uint32(watch))
	return step("remove the watch", err)
}
