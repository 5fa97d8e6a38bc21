# Quantum ESPRESSO on the top candidates, one job each. Only with qe.enabled.


rule validate_qe:
    input:
        screened=campaigns.at("screen_candidates", "candidates/screened.parquet"),
    output:
        "results/{campaign}/validation/candidate-{number}.parquet",
    log:
        "logs/{campaign}/validate_qe-{number}.log",
    benchmark:
        "results/{campaign}/timings/validate_qe-{number}.tsv"
    retries: 2
    conda:
        "../../envs/qe.yaml"
    threads: campaigns.threads("cpu")
    resources:
        mem_mb=campaigns.mem_mb("cpu"),
        runtime=campaigns.runtime("cpu"),
    params:
        config="results/{campaign}/config.yaml",
        work="work/{campaign}/validate_qe/candidate-{number}",
        settings=campaigns.settings("validate_qe"),
        code=stage_code_hash("validate_qe"),
    shell:
        "dao-pipeline validate-qe --config {params.config:q} --screened {input.screened:q}"
        " --number {wildcards.number} --out {output:q} --work {params.work:q} > {log:q} 2>&1"
