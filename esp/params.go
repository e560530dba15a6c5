package esp

import (
	"fmt"
	"io"
)

// IANA "Transform Type 1" (encryption) numbers of the supported ciphers.
const (
	EncrAESCBC           uint16 = 12 // RFC 3602, key of 16, 24 or 32 octets
	EncrAESGCM16         uint16 = 20 // RFC 4106, ICV of 16 octets, key as CBC plus 4 octets of salt
	EncrChaCha20Poly1305 uint16 = 28 // RFC 7634, key of 32 octets plus 4 octets of salt

	// The same with the sequence number for an IV, which then is not sent (RFC 8750): 8 octets less
	// in each packet.
	EncrAESGCM16IIV         uint16 = 30
	EncrChaCha20Poly1305IIV uint16 = 31
)

// explicit returns the cipher of encr with an IV in the packet, and whether encr has one there.
func explicit(encr uint16) (cipher uint16, iv bool) {
	switch encr {
	case EncrAESGCM16IIV:
		return EncrAESGCM16, false
	case EncrChaCha20Poly1305IIV:
		return EncrChaCha20Poly1305, false
	}
	return encr, true
}

// IANA "Transform Type 3" (integrity) numbers of the supported MACs (RFC 4868).
const (
	IntegNone       uint16 = 0  // with AEAD ciphers only
	IntegSHA256_128 uint16 = 12 // key of 32 octets, ICV of 16
	IntegSHA384_192 uint16 = 13 // key of 48 octets, ICV of 24
	IntegSHA512_256 uint16 = 14 // key of 64 octets, ICV of 32
)

// Sizes of the anti-replay window, in packets.
const (
	MinReplayWindow     = 1024
	DefaultReplayWindow = 4096
	MaxReplayWindow     = 1 << 16
)

const saltLen = 4 // RFC 4106 section 8.1, RFC 7634 section 2

// Params are what IKE negotiated for one direction of a CHILD SA.
type Params struct {
	SPI     uint32 // 256 … 2^32-1 (RFC 4303 section 2.1)
	Encr    uint16 // EncrAESGCM16 …
	Integ   uint16 // IntegNone with AEAD ciphers
	KeyBits int    // of the cipher without salt: 128, 192, 256; 0: as long as Key is
	ESN     bool   // 64-bit sequence numbers

	// Key is the cipher's part of KEYMAT: key and, for AEAD ciphers, the 4 octets of salt.
	// It is copied; the caller wipes its own.
	Key []byte
	// IntegKey is the MAC's part of KEYMAT, empty for AEAD ciphers. It is copied.
	IntegKey []byte

	Limits Limits
	// Replay is the size of the window in packets (Inbound only): 0 means DefaultReplayWindow,
	// otherwise MinReplayWindow … MaxReplayWindow, rounded up to a multiple of 64.
	Replay int
}

// Limits end an SA by use. Zero means no limit but that of the sequence numbers: without ESN
// 2^32-1 packets, with ESN 2^64-1 (RFC 4303 section 3.3.3). Bytes are those of inner packets.
type Limits struct {
	SoftPackets, HardPackets uint64
	SoftBytes, HardBytes     uint64
}

// Format prints the SPI and the suite, never a key, whatever the verb.
func (p Params) Format(w fmt.State, _ rune) {
	_, _ = io.WriteString(w, fmt.Sprintf("esp.Params{SPI:%#08x Encr:%d Integ:%d KeyBits:%d ESN:%t}", p.SPI, p.Encr, p.Integ, p.KeyBits, p.ESN))
}

// Packet is one packet of a batch.
type Packet struct {
	Buf  []byte
	Off  int   // where the packet begins in Buf; the batch functions move it
	Len  int   // of the packet in octets; the batch functions change it
	Next uint8 // Seal: 4 (IPv4), 41 (IPv6), 59 (dummy); Open: what the packet said
	Err  error // set by the batch functions: nil or one of errors.go

	seq uint64
}

// Next header values (IANA protocol numbers).
const (
	NextIPv4 uint8 = 4
	NextIPv6 uint8 = 41
	NextNone uint8 = 59 // dummy packet, RFC 4303 section 2.6
)

const (
	headerLen  = 8 // SPI, sequence number
	trailerLen = 2 // pad length, next header
	maxInner   = 65535
)

// seqLimit returns the last sequence number that may be used.
func (p *Params) seqLimit() uint64 {
	if p.ESN {
		return 1<<64 - 1
	}
	return 1<<32 - 1
}

// effective fills the limits that were left zero, so that the hot path has nothing to decide: the
// hard limits are at most the sequence space, and a soft limit is always there in time.
func (p *Params) effective() Limits {
	l := p.Limits
	if l.HardPackets == 0 || l.HardPackets > p.seqLimit() {
		l.HardPackets = p.seqLimit()
	}
	if l.HardBytes == 0 {
		l.HardBytes = 1<<63 - 1 // leaves room above it, so that adding a packet cannot wrap
	}
	if l.SoftPackets == 0 || l.SoftPackets > l.HardPackets {
		l.SoftPackets = l.HardPackets - l.HardPackets/8
	}
	if l.SoftBytes == 0 || l.SoftBytes > l.HardBytes {
		l.SoftBytes = l.HardBytes - l.HardBytes/8
	}
	return l
}

func (p *Params) check() error {
	if p.SPI < 256 {
		return fmt.Errorf("%w: SPI %#x is reserved (RFC 4303 section 2.1), want 0x100 or more", ErrParams, p.SPI)
	}
	if p.Replay != 0 && (p.Replay < MinReplayWindow || p.Replay > MaxReplayWindow) {
		return fmt.Errorf("%w: replay window of %d packets, want %d to %d, or 0 for %d", ErrParams, p.Replay, MinReplayWindow, MaxReplayWindow, DefaultReplayWindow)
	}
	if p.Limits.HardBytes > 1<<63-1 {
		return fmt.Errorf("%w: hard limit of %d bytes, want at most 2^63-1", ErrParams, p.Limits.HardBytes)
	}
	keyLen := len(p.Key)
	aead := true
	encr, _ := explicit(p.Encr)
	switch encr {
	case EncrAESGCM16, EncrChaCha20Poly1305:
		keyLen -= saltLen
	case EncrAESCBC:
		aead = false
	default:
		return fmt.Errorf("%w: encryption transform %d, want %d (AES-CBC), %d (AES-GCM-16) or %d (ChaCha20-Poly1305), or %d or %d (the last two with implicit IV)",
			ErrParams, p.Encr, EncrAESCBC, EncrAESGCM16, EncrChaCha20Poly1305, EncrAESGCM16IIV, EncrChaCha20Poly1305IIV)
	}
	okLen := keyLen == 32 || encr != EncrChaCha20Poly1305 && (keyLen == 16 || keyLen == 24)
	if !okLen || p.KeyBits != 0 && p.KeyBits != keyLen*8 {
		return fmt.Errorf("%w: encryption transform %d with KeyBits %d was given %d octets of key material (salt included where there is one)",
			ErrParams, p.Encr, p.KeyBits, len(p.Key))
	}
	if aead {
		if p.Integ != IntegNone || len(p.IntegKey) != 0 {
			return fmt.Errorf("%w: integrity transform %d (%d octets of key) beside an AEAD cipher, want none", ErrParams, p.Integ, len(p.IntegKey))
		}
		return nil
	}
	want := map[uint16]int{IntegSHA256_128: 32, IntegSHA384_192: 48, IntegSHA512_256: 64}[p.Integ]
	if want == 0 {
		return fmt.Errorf("%w: integrity transform %d beside AES-CBC, want %d, %d or %d", ErrParams, p.Integ, IntegSHA256_128, IntegSHA384_192, IntegSHA512_256)
	}
	if len(p.IntegKey) != want {
		return fmt.Errorf("%w: integrity transform %d was given a key of %d octets, want %d", ErrParams, p.Integ, len(p.IntegKey), want)
	}
	return nil
}
