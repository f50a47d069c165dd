package conf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"
)

const workloadText = `
cvm-version: 0.11.0
cpus: 2
future-field: {of: [any, shape]}
cvm-network: {inbound-ports: [8080, 9000]}
containers:
  - name: web
    image: example.invalid/web@sha256:00
    env: [COLOUR: red, REGION, COUNT: 3, GUEST_SICK_AFTER_S: 5]
    secrets: [A, B]
    healthcheck: {test: [CMD, true], interval: 10s, start_period: 1m30s}
  - name: worker
    secrets: [B, C]
    registry: {username: someone}
`

const externalText = `
env: {REGION: north, COLOUR: blue, GUEST_SICK_AFTER_S: "9", EXTRA: 1}
secrets: {A: one, B: "two: three", C: null}
metadata: {id: abcd2345, tag: v1, gpu: {count: 0}}
network: {address: 10.1.2.3/24, gateway: 10.1.2.1}
`

func TestPaddingIsStripped(t *testing.T) {
	disk := append([]byte("a: 1\n"), make([]byte, 507)...)
	payload, err := Payload(disk)
	if err != nil || string(payload) != "a: 1\n" {
		t.Errorf("%q, %v", payload, err)
	}
	if payload, err = Payload([]byte("exact")); err != nil || string(payload) != "exact" {
		t.Errorf("%q, %v", payload, err)
	}
}

func TestEmptyAndOversizedDisksAreRefused(t *testing.T) {
	for _, disk := range [][]byte{nil, make([]byte, 4096), bytes.Repeat([]byte("x"), MaxPayload+1)} {
		if _, err := Payload(disk); err == nil {
			t.Errorf("%d bytes: accepted", len(disk))
		}
	}
	if _, err := Payload(bytes.Repeat([]byte("x"), MaxPayload)); err != nil {
		t.Error(err)
	}
}

func TestHashMustAgree(t *testing.T) {
	payload := []byte("a: 1\n")
	sum := sha256.Sum256(payload)
	if err := CheckHash(payload, hex.EncodeToString(sum[:])); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"", strings.Repeat("0", 64), hex.EncodeToString(sum[:8])} {
		if CheckHash(payload, want) == nil {
			t.Errorf("%q: accepted", want)
		}
	}
}

func TestWorkloadIsReadAndUnknownFieldsTolerated(t *testing.T) {
	w, err := ParseWorkload([]byte(workloadText))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(w.CVMNetwork.InboundPorts, []int{8080, 9000}) || len(w.Containers) != 2 {
		t.Errorf("%+v", w)
	}
	if got := w.SecretNames(); !reflect.DeepEqual(got, []string{"A", "B", "C"}) {
		t.Errorf("secrets %v", got)
	}
	check := w.Containers[0].Healthcheck
	if time.Duration(check.StartPeriod) != 90*time.Second || time.Duration(check.Interval) != 10*time.Second {
		t.Errorf("%+v", check)
	}
	if !w.UsesRegistryAuth() {
		t.Error("registry not seen")
	}
}

func TestBadWorkloadsAreRefused(t *testing.T) {
	for _, text := range []string{
		"containers: [", "cpus: 1\ncpus: 2", "cvm-network: {inbound-ports: [443]}",
		"cvm-network: {inbound-ports: [70000]}", "containers: [{env: [{A: 1, B: 2}]}]",
		"containers: [{healthcheck: {interval: soon}}]",
	} {
		if _, err := ParseWorkload([]byte(text)); err == nil {
			t.Errorf("%q: accepted", text)
		}
	}
}

func TestExternalConfigGivesAddressAndMetadata(t *testing.T) {
	ext, err := ParseExternal([]byte(externalText))
	if err != nil {
		t.Fatal(err)
	}
	if ext.Address.String() != "10.1.2.3/24" || ext.Gateway.String() != "10.1.2.1" {
		t.Errorf("%s via %s", ext.Address.String(), ext.Gateway)
	}
	if ext.Metadata["tag"] != "v1" || ext.Secrets["B"] != "two: three" {
		t.Errorf("%+v", ext.Metadata)
	}
}

func TestBadNetworksAreRefused(t *testing.T) {
	for _, network := range []string{
		"", "address: 10.0.0.2, gateway: 10.0.0.1", "address: 10.0.0.2/31, gateway: 10.0.0.3",
		"address: 10.0.0.2/24, gateway: 10.0.1.1", "address: 10.0.0.2/24, gateway: 10.0.0.2",
		"address: 'fe80::2/64', gateway: 'fe80::1'",
	} {
		if _, err := ParseExternal([]byte("network: {" + network + "}")); err == nil {
			t.Errorf("%q: accepted", network)
		}
	}
}

func TestErrorsOfTheExternalConfigQuoteNothing(t *testing.T) {
	for _, text := range []string{
		"secrets: hunter2", "secrets: {A: [hunter2]}", "secrets: {A: 'hunter2", "hunter2",
		"network: {address: [hunter2]}",
	} {
		_, err := ParseExternal([]byte(text))
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMeasuredValuesWinSaveForBehaviour(t *testing.T) {
	w, _ := ParseWorkload([]byte(workloadText))
	ext, _ := ParseExternal([]byte(externalText))
	want := map[string]string{"COLOUR": "red", "REGION": "north", "COUNT": "3",
		"GUEST_SICK_AFTER_S": "9", "EXTRA": "1"}
	if got := Environment(w, ext); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

func TestMissingSecretsAreNamed(t *testing.T) {
	w, _ := ParseWorkload([]byte(workloadText))
	ext, _ := ParseExternal([]byte(externalText))
	if got := MissingSecrets(w, ext); !reflect.DeepEqual(got, []string{"C"}) {
		t.Errorf("%v", got)
	}
}
