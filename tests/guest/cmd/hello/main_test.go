package main

import (
	"testing"
	"time"
)

func TestItIsHealthyWhenItsReleaseSaysSo(t *testing.T) {
	for text, want := range map[string][2]bool{"": {true, true}, "5": {false, true}, "never": {false, false}} {
		healthy, err := healthyAfter(text)
		if err != nil || healthy(time.Second) != want[0] || healthy(6*time.Second) != want[1] {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := healthyAfter("soon"); err == nil {
		t.Error("accepted")
	}
}
