//go:build linux && (amd64 || arm64)

package shm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoMemory means that the machine cannot give that much shared memory.
var ErrNoMemory = errors.New("not enough shared memory")

const (
	seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_SEAL
	// askBytes is from where on the machine is asked before a size is tried: the kernel would rather kill than refuse.
	askBytes = 64 << 20
)

// mapping is a memory in this process. Only a mapping that this process has made keeps its descriptor.
type mapping struct {
	memory
	data []byte
	fd   int
}

func (m *mapping) size() uint64 { return uint64(len(m.data)) }

func (m *mapping) unmap() {
	if m.data != nil {
		_ = unix.Munmap(m.data)
	}
	if m.fd >= 0 {
		_ = unix.Close(m.fd)
	}
	*m = mapping{fd: -1}
}

func mapOf(data []byte, fd int) mapping {
	return mapping{memory: memory{unsafe.Pointer(unsafe.SliceData(data))}, data: data, fd: fd}
}

// create makes zeroed memory of whole pages, writable here and not sealed yet. The error wraps ErrNoMemory where there
// is too little.
func create(name string, size uint64) (mapping, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // Linux before 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return mapping{fd: -1}, shortage("memfd_create", err)
	}
	if size >= askBytes && size > available() {
		err = unix.ENOMEM
	} else {
		for {
			if err = unix.Fallocate(fd, 0, 0, int64(size)); err != unix.EINTR {
				break
			}
		}
	}
	if err != nil {
		unix.Close(fd)
		return mapping{fd: -1}, shortage(fmt.Sprintf("%d bytes", size), err)
	}
	data, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return mapping{fd: -1}, shortage("mmap", err)
	}
	return mapOf(data, fd), nil
}

func shortage(what string, err error) error {
	if err == unix.ENOSPC || err == unix.ENOMEM {
		return fmt.Errorf("%w: %s: %w", ErrNoMemory, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// seal is called once the header is written: from then on the memory changes only through our mapping.
func (m *mapping) seal() error {
	_, err := unix.FcntlInt(uintptr(m.fd), unix.F_ADD_SEALS, seals)
	return err
}

// available is how many bytes the machine can give without swapping.
func available() uint64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return ^uint64(0)
	}
	_, rest, found := bytes.Cut(text, []byte("MemAvailable:"))
	words := bytes.Fields(rest)
	if !found || len(words) == 0 {
		return ^uint64(0)
	}
	kilobytes, err := strconv.ParseUint(string(words[0]), 10, 50)
	if err != nil {
		return ^uint64(0)
	}
	return kilobytes << 10
}

// openPeer checks and maps a peer's memory to be read. No read of it can fault from then on: it is sealed against
// shrinking and all its pages are reserved. The descriptor stays the caller's.
func openPeer(fd int) (mapping, error) {
	none := mapping{fd: -1}
	found, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return none, faultf("descriptor %d is no memfd: %v", fd, err)
	}
	if missing := seals &^ found; missing != 0 {
		return none, faultf("memory is not sealed against%s", sealNames(missing))
	}
	var status unix.Stat_t
	if err := unix.Fstat(fd, &status); err != nil {
		return none, faultf("descriptor %d: %v", fd, err)
	}
	if status.Size <= 0 || status.Size%pageSize != 0 {
		return none, faultf("memory of %d bytes is not whole pages", status.Size)
	}
	if status.Blocks*512 < status.Size {
		return none, faultf("only %d of %d bytes are reserved", status.Blocks*512, status.Size)
	}
	data, err := unix.Mmap(fd, 0, int(status.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return none, shortage("mmap", err)
	}
	return mapOf(data, -1), nil
}

func sealNames(missing int) string {
	names := ""
	for _, each := range []struct {
		seal int
		name string
	}{
		{unix.F_SEAL_SHRINK, " shrinking"}, {unix.F_SEAL_GROW, " growing"},
		{unix.F_SEAL_FUTURE_WRITE, " other writers"}, {unix.F_SEAL_SEAL, " further seals"},
	} {
		if missing&each.seal != 0 {
			names += each.name
		}
	}
	return names
}

// attachPeer maps a peer's RING or CREDIT and checks a private copy of its header.
func attachPeer(fd int, kind uint32) (mapping, Header, error) {
	m, err := openPeer(fd)
	if err != nil {
		return m, Header{}, err
	}
	header, err := decodeHeader([headerBytes]byte(m.data[:headerBytes]), kind, m.size())
	if err != nil {
		m.unmap()
	}
	return m, header, err
}

// makeWords makes a RING or CREDIT with its header, sealed.
func makeWords(kind uint32, header Header) (mapping, error) {
	m, err := create("chronetix-"+kindName(kind), memorySize(kind, slotsLog2(header.Credits)))
	if err != nil {
		return m, err
	}
	line := header.encode(kind)
	copy(m.data, line[:])
	if err := m.seal(); err != nil {
		m.unmap()
		return m, err
	}
	return m, nil
}
