package auth

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxSecretSize bounds a secret file, in bytes. The largest value that means anything, a connection string with a
// SAS inside, is below 2 KiB.
const maxSecretSize = 64 << 10

// File systems that live in memory (statfs(2)): Kubernetes, Docker Swarm and systemd put secrets there, readable
// for everybody who can enter the directory.
const (
	ramfsMagic = 0x858458f6
	tmpfsMagic = 0x01021994
)

// checkSecretDir refuses a directory in which anybody can put or replace files. Kubernetes makes the directory of
// a secret volume 1777, so the sticky bit is enough.
func checkSecretDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("secret directory %s does not exist", dir)
	case err != nil:
		return fmt.Errorf("cannot use secret directory %s: %w", dir, cause(err))
	case !info.IsDir():
		return fmt.Errorf("secret directory %s is not a directory", dir)
	case info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0:
		return fmt.Errorf("secret directory %s can be written by everybody: run chmod o-w %s", dir, dir)
	}
	return nil
}

// ReadFile reads a file that may hold secrets, with the checks of a secret file: others must not be able to write it,
// and whoever could read it without need is in the warning. Symbolic links are followed and the target is what is checked,
// because a Kubernetes secret is a link to a link. One newline at the end is not part of the value. what is how messages
// call such a file. found is false when there is no such file.
func ReadFile(what, path string) (value Secret, found bool, warning string, err error) {
	value, found, warning, err = readBinary(what, path)
	return NewSecret(strings.TrimSuffix(strings.TrimSuffix(value.Reveal(), "\n"), "\r")), found, warning, err
}

// readBinary is ReadFile for what is no text: it returns every byte.
func readBinary(what, path string) (value Secret, found bool, warning string, err error) {
	// O_NONBLOCK: opening a FIFO would wait for a writer. It means nothing for a regular file.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if _, lerr := os.Lstat(path); lerr == nil {
			return Secret{}, false, "", fmt.Errorf("%s %s is a symbolic link to nothing", what, path)
		}
		return Secret{}, false, "", nil
	}
	if err != nil {
		return Secret{}, false, "", fmt.Errorf("cannot read %s %s: %w", what, path, cause(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Secret{}, false, "", fmt.Errorf("cannot read %s %s: %w", what, path, cause(err))
	}
	if !info.Mode().IsRegular() {
		return Secret{}, false, "", fmt.Errorf("%s %s is not a regular file", what, path)
	}
	if info.Mode().Perm()&0o022 != 0 {
		real, rerr := filepath.EvalSymlinks(path)
		if rerr != nil {
			real = path
		}
		return Secret{}, false, "", fmt.Errorf("%s %s can be written by other users: run chmod go-w %s", what, path, real)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecretSize+1))
	if err != nil {
		return Secret{}, false, "", fmt.Errorf("cannot read %s %s: %w", what, path, cause(err))
	}
	if len(data) > maxSecretSize {
		return Secret{}, false, "", fmt.Errorf("%s %s is larger than %d bytes", what, path, maxSecretSize)
	}
	if strings.Trim(string(data), "\r\n") == "" {
		return Secret{}, false, "", fmt.Errorf("%s %s is empty", what, path)
	}
	if info.Mode().Perm()&0o004 != 0 && !inMemory(f) {
		warning = fmt.Sprintf("%s %s can be read by everybody: run chmod o-r on it", what, path)
	}
	return NewSecret(string(data)), true, warning, nil
}

func inMemory(f *os.File) bool {
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(f.Fd()), &st); err != nil {
		return false // the warning is only advice, and the safe side of it is to give it
	}
	return uint32(st.Type) == tmpfsMagic || uint32(st.Type) == ramfsMagic
}

// cause drops the operation and the path that os puts before an error, where the message has them already.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
