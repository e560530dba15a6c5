package main

import "wardgate/audit"

// refusedText says in plain words why something was refused. The codes are those of the data
// path, of package policy and of package ike; the kernel's bring their own text. A code that is
// not here is shown as it is.
var refusedText = map[string]string{
	// Data path.
	"malformed":              "a packet that is no proper IP packet",
	"fragment-without-first": "a piece of a packet whose first piece never came",
	"not-unicast":            "a packet to a multicast or broadcast address: those never enter a tunnel",
	"no-policy":              "a packet while no valid policy was in force",
	"policy":                 "a packet that the policy does not allow",
	"not-a-reply":            "an answer that nobody had asked for",
	"outside-selectors":      "a packet with addresses that were not agreed with the partner for this tunnel",
	"connection-blocked":     "a packet for a connection that cannot be used now",
	"connection-failed":      "a packet for a connection that had just failed and was not tried again yet",
	"connection-not-started": "a packet for a connection that is started by hand and was not",
	"too-many-waiting":       "a packet while too many others waited for the same connection",
	"sa-exhausted":           "a packet while the tunnel's keys were used up and being renewed",
	"send-failed":            "a packet that the network here did not take",
	"unknown-spi":            "an encrypted packet of a tunnel that this router does not know (the partner may have restarted)",
	"replay":                 "an encrypted packet that had arrived before",
	"not-authentic":          "an encrypted packet that was changed on its way, or forged",
	"malformed-esp":          "an encrypted packet that is no proper one",
	"dummy":                  "an empty packet of the partner (harmless)",
	"ecn":                    "a packet that the network marked in a way that does not fit (harmless)",
	"tun-write-failed":       "a packet that this router's kernel did not take",

	// Policy.
	"no-relay":                   "a packet from one facility was to be passed on to another",
	"not-a-local-zone":           "a packet from a tunnel was for an address of no zone of this facility",
	"source-not-in-a-local-zone": "a packet for a tunnel did not come from an address of a zone of this facility",
	"local-traffic":              "a packet between two addresses of this facility came to a tunnel",
	"spoofed-local-source":       "a packet from a tunnel bore an address of this facility as its source",
	"wrong-connection":           "a packet's address belongs to another connection than the one it came on",
	"no-rule":                    "no contract allows this between these hosts",
	"no-ports":                   "a packet that shows no port, where the contract names ports",
	"bad-address":                "a packet with addresses that do not fit together",

	// IKE.
	"device-only":        "a partner that has only a device certificate, and no service certificate",
	"service-first":      "a partner that has shown a service certificate without its device certificate",
	"round-missing":      "a partner that began to prove itself and did not finish",
	"too-many-rounds":    "a partner that wanted to prove itself more often than agreed",
	"unknown-identity":   "somebody with a name that no contract knows",
	"local-identity":     "a partner that looked for somebody else at this address",
	"id-mismatch":        "a partner whose certificate is for another name than the one it gave",
	"unknown-ca":         "a partner with a certificate of an authority that is not trusted",
	"cert-expired":       "a partner with a certificate that has expired",
	"cert-not-yet-valid": "a partner with a certificate that is not valid yet (check the clocks)",
	"cert-revoked":       "a partner with a certificate that was revoked",
	"crl-missing":        "a partner whose certificate may have been revoked: the list to look it up in is missing",
	"cert-wrong-eku":     "a partner with a certificate that is for another purpose",
	"cert-not-bound":     "a partner with a service certificate that was made for another device",
	"cert-bad":           "a partner with a certificate that is not well made",
	"cert-missing":       "a partner that sent no certificate",
	"bad-signature":      "somebody who could not prove to be whom the certificate names",
	"auth-method":        "a partner that wanted to prove itself in another way than agreed",
	"no-proposal":        "a partner that offered no cipher that the policy allows",
	"suite-not-allowed":  "a partner that chose a cipher that the policy does not allow",
	"bad-ke":             "a partner with an invalid key exchange",
	"ts-unacceptable":    "a partner that wanted other addresses than agreed",
	"address":            "a partner that needs an address of this network, and there is none for it",
	"flooding":           "too many strangers at once",
	"puzzle":             "a partner under attack that wants more work done for it than this router does",
	"invalid-syntax":     "a message that makes no sense",
	"unexpected-message": "a message at a time when it is not allowed",
	"peer-refused":       "the partner refused this router",
	"local-credential":   "this router's own token could not sign",
	"no-multiple-auth":   "a partner that cannot prove itself twice (device and service)",
	"no-connection":      "somebody from an address that no contract knows",
	"unsupported":        "a message with a part that must be understood and is not known",
	"duplicate-payload":  "a message that holds twice what it may hold once",
}

// refusedWords is the text for one reason; the daemon's own text comes first.
func refusedWords(reason, text string) string {
	if text != "" {
		return plain(text)
	}
	if s := refusedText[reason]; s != "" {
		return s
	}
	return plain(reason)
}

// eventText says in plain words what an event of the audit record is.
var eventText = map[audit.Event]string{
	audit.EventStarted:          "router started",
	audit.EventStopped:          "router stopped",
	audit.EventPolicyInstalled:  "policy installed",
	audit.EventPolicyRefused:    "policy file refused",
	audit.EventPolicyExpired:    "policy expired",
	audit.EventConnectionUp:     "connection up",
	audit.EventConnectionDown:   "connection ended",
	audit.EventConnectionFailed: "connection failed",
	audit.EventConnectionRekey:  "connection has new keys",
	audit.EventAuthRefused:      "partner refused",
	audit.EventFlowAllowed:      "traffic allowed",
	audit.EventFlowRefused:      "traffic refused",
	audit.EventRelayRefused:     "relay attempt refused",
	audit.EventTokenRemoved:     "token removed",
	audit.EventTokenInserted:    "token inserted",
	audit.EventTokenWritten:     "token written",
	audit.EventTokenError:       "token problem",
	audit.EventPINRefused:       "PIN refused",
	audit.EventPINNotTried:      "PIN not tried again",
	audit.EventPINLastTry:       "PIN's last try not spent",
	audit.EventPINLocked:        "PIN locked",
	audit.EventPINSource:        "PIN cannot be read",
	audit.EventTokenFull:        "token full",
	audit.EventTokenReadOnly:    "token write-protected",
	audit.EventChipDied:         "chip process died",
	audit.EventChipHung:         "chip process hung",
	audit.EventChipStartFailed:  "chip process does not start",
	audit.EventPolicyEndsSoon:   "policy expires soon",
	audit.EventCertificate:      "certificate enrolled",
	audit.EventServiceLeft:      "service removed",
	audit.EventCentreFailed:     "centre failed",
	audit.EventCentreBack:       "centre back",
	audit.EventCentre:           "centre",
	audit.EventChipRestarted:    "chip process restarted",
	audit.EventOperator:         "operator's command",
	audit.EventClock:            "clock changed",
	audit.EventKernel:           "filters or routes put right",
	audit.EventLogDamaged:       "record was damaged",
	audit.EventLogRotated:       "record file full",
	audit.EventLogContinued:     "record continued",
}

func eventWords(event string) string {
	if s := eventText[audit.Event(event)]; s != "" {
		return s
	}
	return plain(event)
}
