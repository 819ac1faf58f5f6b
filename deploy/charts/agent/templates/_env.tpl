{{/* The agent's variables. Those of the user come last and replace ours, so none is there twice. */}}
{{- define "agent.env" -}}
{{- $istiod := include "agent.istiod" . -}}
{{- $limits := .Values.resources.limits | default dict -}}
{{- $own := dict
  "CA_ADDRESS" (include "agent.value" (list . "caAddress") | default $istiod)
  "XDS_ADDRESS" (.Values.xdsAddress | default $istiod)
  "RUST_LOG" .Values.logLevel
  "RUST_BACKTRACE" "1"
  "ISTIO_META_CLUSTER_ID" (include "agent.cluster" .)
  "INPOD_ENABLED" "true"
  "TERMINATION_GRACE_PERIOD_SECONDS" (.Values.terminationGracePeriodSeconds | toString)
-}}
{{- with include "agent.value" (list . "network") }}{{- $_ := set $own "NETWORK" . }}{{- end -}}
{{- if .Values.logAsJson }}{{- $_ := set $own "LOG_FORMAT" "json" }}{{- end -}}
{{- if .Values.peerCaCrl.enabled }}{{- $_ := set $own "CRL_PATH" "/var/run/secrets/istio/crl/ca-crl.pem" }}{{- end -}}
{{- range $name, $value := .Values.meshConfig.defaultConfig.proxyMetadata }}{{- $_ := set $own $name $value }}{{- end -}}
{{- range $name, $value := .Values.env }}{{- $_ := set $own $name $value }}{{- end -}}
{{- range $name, $value := $own }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- range $name, $path := dict "POD_NAME" "metadata.name" "POD_NAMESPACE" "metadata.namespace" "NODE_NAME" "spec.nodeName" "INSTANCE_IP" "status.podIP" "SERVICE_ACCOUNT" "spec.serviceAccountName" }}
{{- if not (hasKey $own $name) }}
- {name: {{ $name }}, valueFrom: {fieldRef: {fieldPath: {{ $path }}}}}
{{- end }}
{{- end }}
{{- if and $limits.cpu (not (hasKey $own "ZTUNNEL_CPU_LIMIT")) }}
- {name: ZTUNNEL_CPU_LIMIT, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
{{- end }}
{{- end }}
