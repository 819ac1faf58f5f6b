{{- define "gateway.name" -}}
{{ .Values.name | default .Release.Name }}
{{- end }}

{{- define "gateway.account" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "gateway.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{/* Objects of the cluster: two releases may have one name. */}}
{{- define "gateway.clusterName" -}}
{{ include "gateway.name" . }}-{{ .Release.Namespace }}
{{- end }}

{{/* A value, else the one of the same name below `global`. Call with (list $ "name"). */}}
{{- define "gateway.value" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}
{{- get $root.Values $name | default (get $root.Values.global $name) | default "" -}}
{{- end }}

{{- define "gateway.network" -}}
{{- .Values.networkGateway | default .Values.global.network | required "networkGateway is not set: it is the network that the gateway leads into" -}}
{{- end }}

{{- define "gateway.image" -}}
{{- if contains "/" .Values.image -}}
{{ .Values.image }}
{{- else -}}
{{- with include "gateway.value" (list . "hub") }}{{ . }}/{{ end -}}
{{ .Values.image }}:{{ include "gateway.value" (list . "tag") | default .Chart.AppVersion }}
{{- with include "gateway.value" (list . "variant") }}-{{ . }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "gateway.istiod" -}}
istiod{{ with .Values.revision }}-{{ . }}{{ end }}.{{ .Values.istioNamespace }}.svc:15012
{{- end }}

{{- define "gateway.cluster" -}}
{{- $global := .Values.global.multiCluster | default dict -}}
{{ .Values.multiCluster.clusterName | default $global.clusterName | default "Kubernetes" }}
{{- end }}

{{- define "gateway.selector" -}}
app: {{ include "gateway.name" . }}
istio: {{ include "gateway.name" . | trimPrefix "istio-" }}
{{- end }}

{{/* istiod and the gateway itself find pods and Service by the label of the Gateway's name. */}}
{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
gateway.networking.k8s.io/gateway-name: {{ include "gateway.name" . }}
topology.istio.io/network: {{ include "gateway.network" . }}
app.kubernetes.io/name: {{ include "gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: isthmus
app.kubernetes.io/version: {{ include "gateway.value" (list . "tag") | default .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gateway.metadata" -}}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "gateway.labels" . | nindent 2 }}
{{- with .Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "gateway.env" -}}
{{- $istiod := include "gateway.istiod" . -}}
{{- $own := dict
  "CA_ADDRESS" (include "gateway.value" (list . "caAddress") | default $istiod)
  "XDS_ADDRESS" (.Values.xdsAddress | default $istiod)
  "RUST_LOG" .Values.logLevel
  "RUST_BACKTRACE" "1"
  "NETWORK" (include "gateway.network" .)
  "ISTIO_META_CLUSTER_ID" (include "gateway.cluster" .)
  "TERMINATION_GRACE_PERIOD_SECONDS" .Values.terminationGracePeriodSeconds
  "SYSTEM_NAMESPACE" .Values.istioNamespace
-}}
{{- if .Values.gatewayAPI.enabled }}{{- $_ := set $own "GATEWAY_NAME" (include "gateway.name" .) }}{{- end -}}
{{- if .Values.logAsJson }}{{- $_ := set $own "LOG_FORMAT" "json" }}{{- end -}}
{{- range $name, $value := .Values.env }}{{- $_ := set $own $name $value }}{{- end -}}
{{- range $name, $value := $own }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- range $name, $path := dict "POD_NAME" "metadata.name" "POD_NAMESPACE" "metadata.namespace" "NODE_NAME" "spec.nodeName" "INSTANCE_IP" "status.podIP" "SERVICE_ACCOUNT" "spec.serviceAccountName" }}
{{- if not (hasKey $own $name) }}
- {name: {{ $name }}, valueFrom: {fieldRef: {fieldPath: {{ $path }}}}}
{{- end }}
{{- end }}
{{- end }}
