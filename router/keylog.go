//go:build wardgate_keylog

package router

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"wardgate/esp"
	"wardgate/ike"
)

// keylogNote: this build is for tests, which read captures with the keys that it writes down. No
// policy and no setting leads here, only the build tag; internal/archtest holds that nothing that
// ships sets it.
const keylogNote = " keylog: FOR TESTS ONLY, WRITES KEYS DOWN"

// What tests ask of this build, in the environment.
const (
	// keylogFile names the file that keys are appended to.
	keylogFile = "WARDGATE_KEYLOG"
	// rekeyEvery is how old a CHILD SA gets before this end rekeys it, give or take a quarter, so
	// that now this end is first and now the other: shorter than any policy may ask for.
	rekeyEvery = "WARDGATE_REKEY_EVERY"
)

var keylogMu sync.Mutex

// logKeys writes the keys of a CHILD SA down, one line for each direction, as Wireshark reads
// them from its table esp_sa.
func (r *Router) logKeys(child *childSA, k *ike.ChildSA) {
	if name := os.Getenv(keylogFile); name != "" {
		keylogMu.Lock()
		err := appendTo(name, keylogComment(k)+keylogLine(k, false)+keylogLine(k, true))
		keylogMu.Unlock()
		if err != nil {
			r.log.Error("keys cannot be written down", zap.Error(err))
		}
	}
	if every, err := time.ParseDuration(os.Getenv(rekeyEvery)); err == nil && every > 0 {
		time.AfterFunc(every*3/4+rand.N(every/2), func() { r.rekeyOnce(child) })
	}
}

func (r *Router) rekeyOnce(child *childSA) {
	if r.child(child.id) == child {
		r.dp.rekeyOnce(child)
	}
}

func appendTo(name, text string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if closing := f.Close(); err == nil {
		err = closing
	}
	return err
}

// keylogComment says where the SA comes from: who begins a rekey sends on the new SA at once.
func keylogComment(k *ike.ChildSA) string {
	switch {
	case k.Replaces == 0:
		return "# new\n"
	case k.SendNow:
		return "# rekeyed by us\n"
	}
	return "# rekeyed by the peer\n"
}

// keylogLine is the line of one direction. Wireshark's table says nothing about extended sequence
// numbers, of which it knows the lower half only: it cannot check those ICVs. The addresses are
// left open, since a NAT may change them.
func keylogLine(k *ike.ChildSA, out bool) string {
	spi, key, integ := k.SPIIn, k.KeyIn, k.IntegIn
	if out {
		spi, key, integ = k.SPIOut, k.KeyOut, k.IntegOut
	}
	family := "IPv4"
	if k.Path.Remote.Addr().Is6() {
		family = "IPv6"
	}
	fields := []string{family, "*", "*", fmt.Sprintf("0x%08x", spi), keylogCipher(k.Encr), keylogHex(key), keylogInteg(k.Integ), keylogHex(integ)}
	return `"` + strings.Join(fields, `","`) + "\"\n"
}

func keylogHex(key []byte) string {
	if len(key) == 0 {
		return ""
	}
	return "0x" + hex.EncodeToString(key)
}

// The names of Wireshark 4.0. It knows no ChaCha20-Poly1305 (RFC 7634).
func keylogCipher(encr uint16) string {
	switch encr {
	case esp.EncrAESCBC:
		return "AES-CBC [RFC3602]"
	case esp.EncrAESGCM16:
		return "AES-GCM with 16 octet ICV [RFC4106]"
	}
	return "NULL"
}

func keylogInteg(integ uint16) string {
	switch integ {
	case esp.IntegSHA256_128:
		return "HMAC-SHA-256-128 [RFC4868]"
	case esp.IntegSHA384_192:
		return "HMAC-SHA-384-192 [RFC4868]"
	case esp.IntegSHA512_256:
		return "HMAC-SHA-512-256 [RFC4868]"
	}
	return "NULL"
}
